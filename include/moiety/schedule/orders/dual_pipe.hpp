// SPDX-License-Identifier: Apache-2.0
// DualPipe (DeepSeek-V3 2024) and DualPipeV: forwards and backwards of two directions run as one step each, so that the
// expert exchange of one hides behind the products of the other.
//
// dual_pipe_v: rank r holds stages r (chunk 0: F0, B0) and 2p−1−r (chunk 1: F1, B1).
//   rank r      2(p−1−r) × F0; (r+1) × (F0, F1); (p−1−r) × (I1, W, F1); (m−2p+r+1) × ((F0;B1), (F1;B0)), whose first
//               pair is not joined on rank p−1; (p−1−r) × (B1, (F1;B0)); (r+1) × (B1, B0), the last r+1 of them I only;
//               (p−1−r) × (W, I0); (r+1) × W.
//               W is the oldest weight gradient that is left, of either chunk.
//   bubble      (p−1)(F&B + B − 3W) in units of a chunk at F = I = W; F&B is the time of a joined step
//   memory      2p+1 chunks
//   shapes      v = 2, m ≥ 2p
// dual_pipe: stage s lives on rank s for the first half of the micro-batches, and once more on rank p−1−s for the second
// half, which flows the other way.
//   rank r      as dual_pipe_v with p/2 for p, m/2 for m and min(r, p−1−r) for r; chunk 0 is the direction whose first
//               stage is nearer
//   bubble      (p/2−1)(F&B + B − 3W) at F = I = W
//   memory      p+1 activations, and the parameters of two stages
//   shapes      v = 2, p and m even, m ≥ 2p
// Gradients: ascending (dual_pipe: in each direction, so that a stage's two replicas are added at the end).
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// One rank of either order: its two chunks, each a stage and a run of micro-batches.
class dual_chunks {
 public:
  struct chunk {
    int stage, next_forward, next_backward;
  };

  constexpr dual_chunks(chunk zero, chunk one, rank_actions& actions) : actions_(actions), chunk_{zero, one} {}

  /// Rank `rank` of `ranks`, `microbatches` in each chunk.
  constexpr void generate(int ranks, int rank, int microbatches) {
    int const before = ranks - 1 - rank;
    for (int i = 0; i < 2 * before; ++i) forward(0);
    for (int i = 0; i < rank + 1; ++i) {
      forward(0);
      forward(1);
    }
    for (int i = 0; i < before; ++i) {
      input_gradient(1);
      actions_.next_weight_gradient();
      forward(1);
    }
    for (int i = 0; i < microbatches - 2 * ranks + rank + 1; ++i) {
      overlap(0, 1, i > 0 || before > 0);
      overlap(1, 0, true);
    }
    for (int i = 0; i < before; ++i) {
      backward(1);
      overlap(1, 0, true);
    }
    for (int half = 0; half < 2 * (rank + 1); ++half) {
      if (half < rank + 1)
        backward(1 - half % 2);
      else
        input_gradient(1 - half % 2);
    }
    for (int i = 0; i < before; ++i) {
      actions_.next_weight_gradient();
      input_gradient(0);
    }
    for (int i = 0; i < rank + 1; ++i) actions_.next_weight_gradient();
  }

 private:
  constexpr void forward(int c) { actions_.forward(chunk_[c].stage, chunk_[c].next_forward++); }
  constexpr void backward(int c) { actions_.backward(chunk_[c].stage, chunk_[c].next_backward++); }
  constexpr void input_gradient(int c) { actions_.input_gradient(chunk_[c].stage, chunk_[c].next_backward++); }

  constexpr void overlap(int ahead, int back, bool joined) {
    if (joined) {
      actions_.overlap(chunk_[ahead].stage, chunk_[ahead].next_forward++, chunk_[back].stage,
                       chunk_[back].next_backward++);
    } else {
      forward(ahead);
      backward(back);
    }
  }

  rank_actions& actions_;
  chunk chunk_[2];
};

}  // namespace detail

struct dual_pipe_v {
  static constexpr std::string_view name = "dual_pipe_v";
  static constexpr auto placed = placement::v;
  static constexpr auto gradients = gradient_order::ascending;

  static constexpr shape_fault fault(pipeline_shape const& shape) {
    return detail::first_of(
        detail::unless(shape.chunks == 2, shape_fault::not_two_chunks),
        detail::unless(shape.group == 0, shape_fault::group_unused),
        detail::unless(shape.microbatches >= 2 * shape.ranks, shape_fault::microbatches_below_twice_ranks));
  }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    detail::dual_chunks({rank, 0, 0}, {2 * shape.ranks - 1 - rank, 0, 0}, actions)
        .generate(shape.ranks, rank, shape.microbatches);
  }
};

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
