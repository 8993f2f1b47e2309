// SPDX-License-Identifier: Apache-2.0
// Interleaved 1F1B whose steady phase runs each forward and backward as one step, so that the expert exchange of one
// hides behind the other's products (Megatron-LM's combined 1F1B).
//
// Groups and chunks as for interleaved 1F1B.
//   rank r      w = min(2(p−1−r) + (v−1)g + 1, m·v) forwards, one more than without joining, so that the two of a step do
//               not need each other; (F;B) joined; the other backwards
//   bubble      as interleaved 1F1B where a joined step takes F + B
//   memory      one chunk more than interleaved 1F1B, at most m·v
//   shapes      as interleaved 1F1B; one rank also with one chunk
//   gradients   ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/orders/interleaved_1f1b.hpp>
#include <moiety/schedule/shape.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct interleaved_1f1b_overlapped {
  static constexpr std::string_view name = "interleaved_1f1b_overlapped";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::ascending;
  static constexpr shape_fault fault(pipeline_shape const& shape) {
    if (shape.ranks == 1 && shape.chunks == 1 && shape.group == 0) return shape_fault::none;
    return detail::interleaved_shape(shape);
  }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    detail::interleaving ahead(shape, rank, false), back(shape, rank, true);
    int const all = shape.chunks * shape.microbatches;
    int const warm_up = detail::interleaved_warm_up(shape, rank, 1);  // one more, so that a pair is independent
    for (int k = 0; k < warm_up; ++k) ahead.forward(actions);
    for (int k = warm_up; k < all; ++k) {
      actions.overlap(ahead.stage(), ahead.microbatch(), back.stage(), back.microbatch());
      ahead.advance();
      back.advance();
    }
    for (int k = 0; k < warm_up; ++k) back.backward(actions);
  }
};

}  // namespace moiety
