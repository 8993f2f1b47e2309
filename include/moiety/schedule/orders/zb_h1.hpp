// SPDX-License-Identifier: Apache-2.0
// ZB-H1 (Qi et al. 2023): the backward in two halves, so that weight gradients, which nobody waits for, fill the bubble,
// at the memory of 1F1B. With one chunk a rank it is ZB1P.
//
//   rank r      w = p−1−r forwards; for k = 0 … m−1: the next forward if any, I k, and from k = r on the oldest weight
//               gradient that is left; then the other weight gradients
//   bubble      (p−1)(F+I−W) where W ≤ F and W ≤ I; over each rank's own span: where W ≤ F
//   memory      p activations on every rank
//   shapes      one chunk a rank; the formulas hold for m ≥ p, fewer micro-batches are legal
//   gradients   ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <algorithm>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// Rank `rank` of ZB-H`depth`: depth · (p−1−r) forwards ahead, weight gradients depth · r behind.
constexpr void zero_bubble(pipeline_shape const& shape, int rank, int depth, rank_actions& actions) {
  int const m = shape.microbatches, warm_up = std::min(depth * (shape.ranks - 1 - rank), m);
  for (int i = 0; i < warm_up; ++i) actions.forward(rank, i);
  for (int k = 0; k < m; ++k) {
    if (k + warm_up < m) actions.forward(rank, k + warm_up);
    actions.input_gradient(rank, k);
    if (k >= depth * rank) actions.next_weight_gradient();
  }
  while (actions.next_weight_gradient()) {
  }
}

}  // namespace detail

struct zb_h1 {
  static constexpr std::string_view name = "zb_h1";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::ascending;
  static constexpr shape_fault fault(pipeline_shape const& shape) { return detail::plain_shape(shape); }
  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    detail::zero_bubble(shape, rank, 1, actions);
  }
};

}  // namespace moiety
