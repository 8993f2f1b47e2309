// SPDX-License-Identifier: Apache-2.0
// Six tokens and four experts whose routing, statistics and gradients were worked by hand.
#pragma once

#include <moiety/core/matrix.hpp>

#include <array>

namespace example {

inline constexpr std::array<double, 24> logits{2, 1,  0, -1, 1.5, .5, 1,   -.5,  0, 2, 1, .5,
                                               1, -1, 0, 2,  .5,  0,  2.5, -1.5, 3, 0, 1, 2};

/// The logits in type S, plus a constant.
template <class S> moiety::matrix<S> make_logits(double shift = 0) {
  moiety::matrix<S> m(6, 4);
  for (std::size_t i = 0; i < 24; ++i) m.data()[i] = static_cast<S>(logits[i] + shift);
  return m;
}

}  // namespace example
