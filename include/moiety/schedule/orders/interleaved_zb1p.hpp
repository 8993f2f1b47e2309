// SPDX-License-Identifier: Apache-2.0
// Interleaved ZB1P: interleaved stages with the backward in two halves, as torch.distributed.pipelining does it.
//
// Groups as for interleaved 1F1B, of g = m / max(1, m div p) micro-batches.
//   rank r      w = (v−1)g + (p−1−r) forwards; for each k: the next forward if any, I k, and from k = r on the oldest
//               weight gradient that is left; then the other weight gradients
//   bubble      (p−1) in units of a chunk at F = I = W
//   memory      (v−1)g + p chunks on every rank
//   shapes      v ≥ 2, m mod max(1, m div p) = 0; no other group
//   gradients   ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/orders/interleaved_1f1b.hpp>
#include <moiety/schedule/shape.hpp>

#include <algorithm>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct interleaved_zb1p {
  static constexpr std::string_view name = "interleaved_zb1p";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::ascending;

  static constexpr shape_fault fault(pipeline_shape const& shape) {
    return detail::first_of(detail::unless(shape.chunks >= 2, shape_fault::fewer_than_two_chunks),
                            detail::unless(shape.group == 0, shape_fault::group_unused),
                            detail::unless(shape.microbatches % rounds(shape) == 0, shape_fault::uneven_rounds));
  }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    pipeline_shape const grouped{shape.ranks, shape.chunks, shape.microbatches, shape.microbatches / rounds(shape)};
    detail::interleaving ahead(grouped, rank, false), back(grouped, rank, true);
    int const all = shape.chunks * shape.microbatches;
    int const warm_up = std::min((shape.chunks - 1) * grouped.group + shape.ranks - 1 - rank, all);
    for (int k = 0; k < warm_up; ++k) ahead.forward(actions);
    for (int k = 0; k < all; ++k) {
      if (k + warm_up < all) ahead.forward(actions);
      back.input_gradient(actions);
      if (k >= rank) actions.next_weight_gradient();
    }
    while (actions.next_weight_gradient()) {
    }
  }

 private:
  static constexpr int rounds(pipeline_shape const& shape) { return std::max(1, shape.microbatches / shape.ranks); }
};

}  // namespace moiety
