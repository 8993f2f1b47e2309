// SPDX-License-Identifier: Apache-2.0
// Input jitter (Switch Transformers): in training, what the router sees of x is multiplied by noise near 1.
//
//   z = (x ⊙ u) Wᵀ,  u_th uniform in [1 − ε, 1 + ε)       a function of (key, step, layer, the token's place, h)
//
//   mo::router<mo::jitter<std::ratio<1, 100>>, mo::softmax, mo::top_k<2>>
//
// Experts get x as it is. Gradients take the same u. infer adds no noise, so its y is not that of forward.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/random.hpp>

#include <cstdint>
#include <ratio>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {
inline constexpr std::uint64_t jitter_stream = stream_of("router.jitter");
}  // namespace detail

template <class Epsilon = std::ratio<1, 100>> struct jitter {
  static constexpr std::string_view name = "jitter";
  float epsilon = static_cast<float>(static_cast<double>(Epsilon::num) / static_cast<double>(Epsilon::den));
  seed key{0};

  /// u of one value of x [T × width]; `moment` is that of batch/token.hpp.
  template <class S>
  MOIETY_HD S factor(std::int64_t logical, std::int64_t moment, std::int64_t column, std::int64_t width) const {
    std::uint32_t const word = random_word(key, detail::jitter_stream + static_cast<std::uint64_t>(moment),
                                           static_cast<std::uint64_t>(logical * width + column));
    double const centred = (static_cast<double>(word) - 0x1p31) * 0x1p-31;  // in [−1, 1)
    return static_cast<S>(1 + static_cast<double>(epsilon) * centred);
  }

  template <class F> void for_each_value(F const& f) const { f("epsilon", epsilon), f("key", key.value); }

  /// Throws config_error for an ε that can never work.
  void check() const {
    detail::require<config_error>(epsilon >= 0 && epsilon < 1,
                                  "the epsilon of mo::jitter must be at least 0 and below 1, but is ", epsilon, '.');
  }
};

template <class T> inline constexpr bool is_jitter = false;
template <class Epsilon> inline constexpr bool is_jitter<jitter<Epsilon>> = true;

}  // namespace moiety
