// SPDX-License-Identifier: Apache-2.0
// ZB-V (Qi et al. 2024): two chunks a rank in the shape of a V, so that the rank that begins the forward also ends it
// and begins the backward; split backwards. No bubble at the memory of 1F1B.
//
// Rank r holds stages r (chunk 0: F0, I0, W0) and 2p−1−r (chunk 1: F1, I1, W1). With n = max(2p−1, m) micro-batches, of
// which those ≥ m are left out:
//   rank r      2(p−r)−1 × F0; r × (F1, F0); (p−r) × (F1, I1, W1); while there are forwards: (F0 if any, I0, W0, F1, I1,
//               W1); r × (I0, I1); (p−r) × (I0, W0); the other W1; the other W0
//   bubble      0 over each rank's own span, p−1 in units of a chunk by makespan, at F = I = W and m ≥ 2p−1
//   memory      2p chunks, that is p stages of 1F1B
//   shapes      v = 2
//   gradients   ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <algorithm>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// The two chunks of one rank, each with its next forward, input gradient and weight gradient.
class v_chunks {
 public:
  constexpr v_chunks(pipeline_shape const& shape, int rank, rank_actions& actions)
      : actions_(actions), microbatches_(shape.microbatches), stage_{rank, 2 * shape.ranks - 1 - rank} {}

  constexpr void forward(int chunk) {
    int const i = forward_[chunk]++;
    if (i < microbatches_) actions_.forward(stage_[chunk], i);
  }
  constexpr void input_gradient(int chunk) {
    int const i = input_[chunk]++;
    if (i < microbatches_) actions_.input_gradient(stage_[chunk], i);
  }
  constexpr void weight_gradient(int chunk) {
    int const i = weight_[chunk]++;
    if (i < microbatches_) actions_.weight_gradient(stage_[chunk], i);
  }
  constexpr void both_gradients(int chunk) {
    input_gradient(chunk);
    weight_gradient(chunk);
  }

  constexpr int forwards(int chunk) const { return forward_[chunk]; }
  constexpr int weight_gradients(int chunk) const { return weight_[chunk]; }

 private:
  rank_actions& actions_;
  int microbatches_;
  int stage_[2], forward_[2] = {0, 0}, input_[2] = {0, 0}, weight_[2] = {0, 0};
};

}  // namespace detail

struct zb_v {
  static constexpr std::string_view name = "zb_v";
  static constexpr auto placed = placement::v;
  static constexpr auto gradients = gradient_order::ascending;

  static constexpr shape_fault fault(pipeline_shape const& shape) {
    return detail::first_of(detail::unless(shape.chunks == 2, shape_fault::not_two_chunks),
                            detail::unless(shape.group == 0, shape_fault::group_unused));
  }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    int const p = shape.ranks, n = std::max(2 * p - 1, shape.microbatches);
    detail::v_chunks chunk(shape, rank, actions);
    for (int i = 0; i < 2 * (p - rank) - 1; ++i) chunk.forward(0);
    for (int i = 0; i < rank; ++i) {
      chunk.forward(1);
      chunk.forward(0);
    }
    for (int i = 0; i < p - rank; ++i) {
      chunk.forward(1);
      chunk.both_gradients(1);
    }
    while (chunk.forwards(1) < n) {
      if (chunk.forwards(0) < n) chunk.forward(0);
      chunk.both_gradients(0);
      chunk.forward(1);
      chunk.both_gradients(1);
    }
    for (int i = 0; i < rank; ++i) {
      chunk.input_gradient(0);
      chunk.input_gradient(1);
    }
    for (int i = 0; i < p - rank; ++i) chunk.both_gradients(0);
    while (chunk.weight_gradients(1) < n) chunk.weight_gradient(1);
    while (chunk.weight_gradients(0) < n) chunk.weight_gradient(0);
  }
};

}  // namespace moiety
