// SPDX-License-Identifier: Apache-2.0
// ZB-H2 (Qi et al. 2023): as ZB-H1 with twice as many forwards ahead, so that no rank waits between its first action and
// its last, for about twice the memory. With a barrier at the end of a step it gains nothing over ZB-H1 at F = I = W.
//
//   rank r      w = 2(p−1−r) forwards; for k = 0 … m−1: the next forward if any, I k, and from k = 2r on the oldest
//               weight gradient that is left; then the other weight gradients
//   bubble      over each rank's own span: max(0, (p−1)(F+I−2W)) where W ≤ F; by makespan at F = I = W: (p−1)F
//   memory      2p−1 activations on every rank
//   shapes      one chunk a rank; the formulas hold for m ≥ 2p−1, fewer micro-batches are legal
//   gradients   ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/orders/zb_h1.hpp>
#include <moiety/schedule/shape.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct zb_h2 {
  static constexpr std::string_view name = "zb_h2";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::ascending;
  static constexpr shape_fault fault(pipeline_shape const& shape) { return detail::plain_shape(shape); }
  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    detail::zero_bubble(shape, rank, 2, actions);
  }
};

}  // namespace moiety
