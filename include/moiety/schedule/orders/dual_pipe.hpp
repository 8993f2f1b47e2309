// SPDX-License-Identifier: Apache-2.0
// DualPipe (DeepSeek-V3 2024): micro-batches flow in both directions, and a forward of one and a backward of the other
// run as one step, so that the expert exchange of one hides behind the products of the other.
//
// Stage s lives on rank s for the first half of the micro-batches, and once more on rank p−1−s for the second half, which
// flows the other way.
//   rank r      as DualPipeV with p/2 for p, m/2 for m and min(r, p−1−r) for r; chunk 0 is the direction whose first
//               stage is nearer
//   bubble      (p/2−1)(F&B + B − 3W) at F = I = W; F&B is the time of a joined step
//   memory      p+1 activations, and the parameters of two stages
//   shapes      v = 2, p and m even, m ≥ 2p
//   gradients   ascending in each direction; a stage's two replicas are added at the end
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/orders/dual_pipe_v.hpp>
#include <moiety/schedule/shape.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct dual_pipe {
  static constexpr std::string_view name = "dual_pipe";
  static constexpr auto placed = placement::bidirectional;
  static constexpr auto gradients = gradient_order::ascending_per_direction;

  static constexpr shape_fault fault(pipeline_shape const& shape) {
    return detail::first_of(detail::unless(shape.ranks % 2 == 0, shape_fault::odd_ranks),
                            detail::unless(shape.microbatches % 2 == 0, shape_fault::odd_microbatches),
                            dual_pipe_v::fault(shape));
  }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    int const last = shape.ranks - 1, half = shape.microbatches / 2;
    bool const first_half = rank < shape.ranks / 2;
    int const near = first_half ? rank : last - rank;
    int const zero = first_half ? 0 : half, one = half - zero;
    detail::dual_chunks({near, zero, zero}, {last - near, one, one}, actions).generate(shape.ranks / 2, near, half);
  }
};

}  // namespace moiety
