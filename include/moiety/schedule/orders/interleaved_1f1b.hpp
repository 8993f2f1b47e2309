// SPDX-License-Identifier: Apache-2.0
// Interleaved 1F1B (Narayanan et al. 2021): v chunks a rank divide the bubble by v.
//
// Micro-batches go in groups of g. Inside a group all of them pass chunk 0, then chunk 1, …; backwards the chunks from
// the last one down. Stage = chunk·p + r.
//   rank r      w = min(2(p−1−r) + (v−1)g, m·v) forwards; F, B in turn; the other backwards
//   bubble      (p−1)(F+B) in units of a chunk, that is divided by v; for m ≥ p
//   memory      2(p−1) + (v−1)g + 1 chunks on rank 0, at most m·v
//   shapes      v ≥ 2, and p ≤ g ≤ m with m mod g = 0 or ≥ p, or m < p and g = m. Elsewhere the bubble is larger, or the
//               ranks wait for each other for ever.
//   gradients   ascending
// The default g is the smallest legal one.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/shape.hpp>

#include <algorithm>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// Whether every group is full, or the last one has at least as many micro-batches as there are ranks.
constexpr bool legal_group(pipeline_shape const& shape, int group) {
  int const rest = shape.microbatches % group;
  return rest == 0 || rest >= shape.ranks;
}

constexpr int group_of(pipeline_shape const& shape) {
  if (shape.group > 0) return shape.group;
  int group = std::min(shape.ranks, shape.microbatches);
  while (!legal_group(shape, group)) ++group;  // ends at m
  return group;
}

/// Walks over the (chunk, micro-batch) of a rank in the order of its forwards, or of its backwards.
class interleaving {
 public:
  constexpr interleaving(pipeline_shape const& shape, int rank, bool backward)
      : shape_(shape),
        rank_(rank),
        backward_(backward),
        group_(group_of(shape)),
        last_(std::min(group_, shape.microbatches)) {}

  constexpr int stage() const { return (backward_ ? shape_.chunks - 1 - chunk_ : chunk_) * shape_.ranks + rank_; }
  constexpr int microbatch() const { return microbatch_; }

  constexpr void forward(rank_actions& actions) {
    actions.forward(stage(), microbatch_);
    advance();
  }
  constexpr void backward(rank_actions& actions) {
    actions.backward(stage(), microbatch_);
    advance();
  }
  constexpr void input_gradient(rank_actions& actions) {
    actions.input_gradient(stage(), microbatch_);
    advance();
  }

  constexpr void advance() {
    if (++microbatch_ != last_) return;
    microbatch_ = first_;
    if (++chunk_ != shape_.chunks) return;
    chunk_ = 0;
    microbatch_ = first_ = last_;
    last_ = std::min(first_ + group_, shape_.microbatches);
  }

 private:
  pipeline_shape shape_;
  int rank_;
  bool backward_;
  int group_;
  int first_ = 0, last_;  // micro-batches of the group
  int chunk_ = 0, microbatch_ = 0;
};

/// The forwards that a rank runs before its first backward.
constexpr int interleaved_warm_up(pipeline_shape const& shape, int rank, int further) {
  return std::min(2 * (shape.ranks - 1 - rank) + (shape.chunks - 1) * group_of(shape) + further,
                  shape.chunks * shape.microbatches);
}

constexpr shape_fault interleaved_shape(pipeline_shape const& shape) {
  if (shape.chunks < 2) return shape_fault::fewer_than_two_chunks;
  if (shape.group == 0) return shape_fault::none;
  return first_of(unless(shape.group <= shape.microbatches, shape_fault::group_above_microbatches),
                  unless(shape.group >= std::min(shape.ranks, shape.microbatches), shape_fault::group_below_ranks),
                  unless(legal_group(shape, shape.group), shape_fault::short_last_group));
}

}  // namespace detail

struct interleaved_1f1b {
  static constexpr std::string_view name = "interleaved_1f1b";
  static constexpr auto placed = placement::loop;
  static constexpr auto gradients = gradient_order::ascending;
  static constexpr shape_fault fault(pipeline_shape const& shape) { return detail::interleaved_shape(shape); }

  static constexpr void generate(pipeline_shape const& shape, int rank, rank_actions& actions) {
    detail::interleaving ahead(shape, rank, false), back(shape, rank, true);
    int const all = shape.chunks * shape.microbatches, warm_up = detail::interleaved_warm_up(shape, rank, 0);
    for (int k = 0; k < all + warm_up; ++k) {
      if (k < all) ahead.forward(actions);
      if (k >= warm_up) back.backward(actions);
    }
  }
};

}  // namespace moiety
