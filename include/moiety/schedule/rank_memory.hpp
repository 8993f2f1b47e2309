// SPDX-License-Identifier: Apache-2.0
// What the ranks of a schedule must hold, block by block: the parts of split_layers(costs, plan, rank_memory).
//
// A rank holds the weights of all its stages, and at its fullest moment the activations that peak_activations(plan, rank)
// counts. Which moment that is depends on the split, so all are kept that may be the fullest.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/partition.hpp>
#include <moiety/schedule/schedule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// What a rank must hold: Σ weights over the blocks of its stages, and its activations at their peak, in bytes.
struct rank_memory {
  std::span<std::int64_t const> weights;      // of each block: parameters, gradients, optimiser state
  std::span<std::int64_t const> activations;  // of each block, for one micro-batch
  std::int64_t capacity = 0;                  // of each rank
};

namespace detail {

using byte_counts = std::vector<std::int64_t>;

/// Whether a[i] <= b[i] for all i.
inline bool no_more(byte_counts const& a, byte_counts const& b) {
  return std::ranges::equal(a, b, [](std::int64_t x, std::int64_t y) { return x <= y; });
}

/// One rank: its stages, and what it uses at each of its fullest moments.
class rank_use {
 public:
  rank_use(schedule_view const& plan, int rank) {
    for (int s = 0; s < plan.stages(); ++s)
      if (plan.rank_of(s, 0) == rank || plan.rank_of(s, plan.microbatches() - 1) == rank) stages_.push_back(s);
    find_moments(plan, rank);
    clear();
  }

  /// Ascending, in either direction.
  std::vector<int> const& stages() const { return stages_; }
  /// The micro-batches that each stage holds at moments where no other moment holds as many of all.
  std::vector<byte_counts> const& moments() const { return moments_; }
  byte_counts const& used() const { return used_; }

  void clear() { used_.assign(moments_.size(), 0); }

  bool has_room(int stage, std::int64_t weights, std::int64_t activations, std::int64_t capacity) const {
    std::size_t const at = index_of(stage);
    for (std::size_t m = 0; m < moments_.size(); ++m)
      if (weights + activations * moments_[m][at] > capacity - used_[m]) return false;
    return true;
  }

  /// Adds a block to a stage; takes it away again where both numbers are negated.
  void add(int stage, std::int64_t weights, std::int64_t activations) {
    std::size_t const at = index_of(stage);
    for (std::size_t m = 0; m < moments_.size(); ++m) used_[m] += weights + activations * moments_[m][at];
  }

  /// The index of the first stage that is not before `stage`.
  std::size_t index_of(int stage) const {
    return static_cast<std::size_t>(std::ranges::lower_bound(stages_, stage) - stages_.begin());
  }

 private:
  void find_moments(schedule_view const& plan, int rank) {
    byte_counts now(stages_.size(), 0);
    moments_.push_back(now);
    for (action const& a : plan.rank(rank)) {
      std::size_t const at = index_of(a.stage);
      demand(at < stages_.size() && stages_[at] == a.stage, "a stage works on a rank that it does not live on.");
      auto& held = now[at];
      if (a.type == computation::backward || a.type == computation::weight_gradient) --held;
      if (a.type != computation::forward) continue;
      ++held;
      if (std::ranges::any_of(moments_, [&](byte_counts const& other) { return no_more(now, other); })) continue;
      std::erase_if(moments_, [&](byte_counts const& other) { return no_more(other, now); });
      moments_.push_back(now);
    }
  }

  std::vector<int> stages_;
  std::vector<byte_counts> moments_;
  byte_counts used_;
};

/// The blocks, but the last, that need at least the median of weights and of activations: most of a model's are alike.
class typical_blocks {
 public:
  explicit typical_blocks(rank_memory const& memory)
      : weights(median(memory.weights)), activations(median(memory.activations)), from_(memory.weights.size(), 0) {
    for (std::size_t b = from_.size() - 1; b-- > 0;)
      from_[b] = from_[b + 1] + (memory.weights[b] >= weights && memory.activations[b] >= activations ? 1 : 0);
  }

  std::int64_t const weights, activations;  // what each needs, at least

  /// How many there are from a block on.
  std::int64_t from(int block) const { return from_[static_cast<std::size_t>(block)]; }

  /// The most of them in a row of blocks that cost no more than `most`.
  std::int64_t widest(byte_counts const& costs, std::int64_t most) const {
    std::int64_t result = 0, cost = 0;
    for (std::size_t first = 0, end = 0; end + 1 < costs.size(); ++end) {
      cost += costs[end];
      while (cost > most) cost -= costs[first++];
      result = std::max(result, from_[first] - from_[end + 1]);
    }
    return result;
  }

 private:
  static std::int64_t median(std::span<std::int64_t const> given) {
    byte_counts all(given.begin(), given.end());
    std::ranges::nth_element(all, all.begin() + std::ssize(all) / 2);
    return all[all.size() / 2];
  }

  byte_counts from_;
};

}  // namespace detail

}  // namespace moiety
