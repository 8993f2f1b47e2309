// SPDX-License-Identifier: Apache-2.0
// DualPipeV (DeepSeek 2025, from the V half of DualPipe): two chunks a rank in the shape of a V; a forward of one and a
// backward of the other run as one step, so that the expert exchange of one hides behind the products of the other.
//
// Rank r holds stages r (chunk 0: F0, B0) and 2p−1−r (chunk 1: F1, B1). W is the oldest weight gradient that is left, of
// either chunk.
//   rank r      2(p−1−r) × F0; (r+1) × (F0, F1); (p−1−r) × (I1, W, F1); (m−2p+r+1) × ((F0;B1), (F1;B0)), whose first
//               pair is not joined on rank p−1; (p−1−r) × (B1, (F1;B0)); (r+1) × (B1, B0), the last r+1 of them I only;
//               (p−1−r) × (W, I0); (r+1) × W
//   bubble      (p−1)(F&B + B − 3W) in units of a chunk at F = I = W; F&B is the time of a joined step
//   memory      2p+1 chunks
//   shapes      v = 2, m ≥ 2p
//   gradients   ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// One rank of DualPipeV or DualPipe: its two chunks, each a stage and a run of micro-batches.
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

}  // namespace moiety
