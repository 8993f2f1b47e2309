// SPDX-License-Identifier: Apache-2.0
// A selection and a weight rule of your own, for every back end; 8_own_router.cpp uses them.
#pragma once

#include <moiety/moiety.hpp>

// The K best experts, no two of them neighbours.
template <int K> struct spread_out {
  static constexpr int count = K;
  template <moiety::score_row Row, class Chosen> MOIETY_HD void forward(Row& scores, Chosen const& chosen) const {
    for (int slot = 0; slot < K; ++slot) {
      int const best = scores.argmax();
      chosen(slot, best);
      for (int const near : {best - 1, best, best + 1}) scores.remove(near);
    }
  }
};

// Weights are the squares of the scores: w = s², dw/ds = 2 s.
struct sharpened {
  static constexpr moiety::weight_source source = moiety::weight_source::scores;
  MOIETY_HD void forward(moiety::score_row auto& row) const {
    row.map([](auto s) { return s * s; });
  }
  MOIETY_HD void backward(moiety::score_row auto const& scores, moiety::score_row auto const& /* weights */,
                          moiety::score_row auto& gradient) const {
    gradient.map(scores, [](auto g, auto s) { return 2 * s * g; });
  }
};
