// SPDX-License-Identifier: Apache-2.0
// How many slots the tokens of a training step gave each expert of one layer, kept by the caller from micro-batch to
// micro-batch. When a micro-batch runs backward the counts of its global batch are not known yet: a balance loss then takes
// those of the micro-batches so far (counts::prefix) or of the last whole step (counts::previous_step).
//
//   mo::step_counts counts(experts);                                 one for each layer
//
//   auto tape = layer.forward(weights, x, y, {.counts = &counts});   the tape keeps what is counted so far
//   counts.add(tape.statistics());                                   once for every forward that is trained
//   layer.backward(weights, tape, dy, dx, gradients);                any time later
//
//   counts.next_step();                                              after the last micro-batch
//   counts.restart();                                                forgets what is counted of a step that failed
//
// Of the layers of a pipeline the engine keeps them (pipeline/stack_counts.hpp).
//
// Counts are integers, so the order of micro-batches does not matter to the sum. Statistics of several ranks may be added,
// each once. add() of a tape waits for its forward, where that runs on a device.
#pragma once

#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class step_counts {
 public:
  /// Nothing counted yet, and no step before.
  explicit step_counts(std::int64_t experts) : width_(checked(experts) + 1), values_(2 * width_) {}

  std::int64_t experts() const { return static_cast<std::int64_t>(width_) - 1; }

  /// Counts the tokens of one micro-batch.
  void add(statistics_view const& of) {
    auto const given = static_cast<std::int64_t>(of.experts.size());
    detail::require<data_error>(given == experts(), "statistics of ", given,
                                " experts cannot be added to the counts of ", experts(), '.');
    values_[0] += of.tokens();
    for (std::size_t e = 0; e < of.experts.size(); ++e) values_[1 + e] += of.experts[e].count;
  }
  void add(statistics_table of) { add(of.view().unit(0)); }

  /// What is counted becomes the last step, and a new one begins.
  void next_step() {
    std::copy_n(values_.begin(), width_, values_.begin() + static_cast<std::ptrdiff_t>(width_));
    restart();
  }
  /// What is counted of this step is forgotten; the last one stays.
  void restart() { std::fill_n(values_.begin(), width_, 0); }

  counts_view so_far() const { return {values_.data()}; }
  counts_view last_step() const { return {values_.data() + width_}; }

  /// [2 × (1 + E)]: tokens and slots of each expert, of this step and then of the last.
  std::span<std::int64_t const> values() const { return values_; }

 private:
  static std::size_t checked(std::int64_t experts) {
    detail::require<config_error>(experts >= 1, "counts need at least 1 expert, but were given ", experts, '.');
    return static_cast<std::size_t>(experts);
  }

  std::size_t width_;
  std::vector<std::int64_t> values_;
};

}  // namespace moiety
