// SPDX-License-Identifier: Apache-2.0
// split_layers() where a rank's capacity, not a stage's, is the limit: for orders with several stages a rank.
//
//   split_layers(costs, plan, memory)      blocks over the stages of a schedule
//
// Of all splits that respect the capacity (rank_memory.hpp says what a rank holds), the one is taken whose costliest
// stage costs least, then the one with the smallest bounds; no stage is empty, and each has a block that costs something
// where that leaves the maximum as it is. Where the optimum without a capacity fits, it is the result.
//
// Stages of one rank share its memory, so no walk from stage to stage finds the optimum: this is an exhaustive search,
// exact wherever it ends. It leaves out what cannot work: the blocks that are left do not fit the stages that are left,
// each taken alone; or not the ranks, by number; or did not when there was more room. With models as they are, of layers
// that are alike, it takes milliseconds. At worst its time grows exponentially with the stages: it gives up after
// `split_steps`, at the same point on every rank.
//
// Throws config_error as split_layers() does, and where the memory of all blocks adds up to more than 63 bits;
// split_too_hard, which is one, where it gives up.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/schedule/partition.hpp>
#include <moiety/schedule/rank_memory.hpp>
#include <moiety/schedule/schedule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// A split under the capacity of ranks that was not found within split_steps.
struct split_too_hard : config_error {
  using config_error::config_error;
};

/// What the search may spend, in comparisons of a rank's memory; it takes a second or two to spend that.
inline constexpr std::int64_t split_steps = 30'000'000;

namespace detail {

/// The search: stage by stage from the first, each with as few blocks as can be, and back where that leads nowhere. The
/// last block is in the last stage from the start.
class rank_splitter {
 public:
  rank_splitter(byte_counts const& costs, schedule_view const& plan, rank_memory const& memory)
      : costs_(costs),
        memory_(memory),
        typical_(memory),
        blocks_(static_cast<int>(costs.size())),
        stages_(plan.stages()),
        bounds_(index(stages_) + 1, 0),
        widest_(index(stages_), 0),
        holders_(index(stages_)),
        dead_(index(stages_) * (index(blocks_) + 1)) {
    for (int r = 0; r < plan.ranks(); ++r) {
      ranks_.emplace_back(plan, r);
      for (int const s : ranks_.back().stages()) holders_[index(s)].push_back(index(r));
    }
    for (auto const& holders : holders_) copies_ = std::min(copies_, std::ssize(holders));
    demand_sums();
  }

  /// The first block of every stage, and the number of blocks behind the last. No maximum below `least` is possible.
  std::vector<int> const& run(std::int64_t least) {
    byte_counts const maxima = possible_maxima(least);
    std::size_t low = 0, high = 0;  // the best one is among low … high
    if (memory_.capacity < 0 || !fill(maxima.front(), false)) {
      demand(memory_.capacity >= 0 && fill(maxima.back(), false), "no split respects the capacity of the ranks.");
      low = 1, high = maxima.size() - 1;
    }
    while (low < high) {
      std::size_t const middle = low + (high - low) / 2;
      if (fill(maxima[middle], false))
        high = middle;
      else
        low = middle + 1;
    }
    bool const enough = std::ranges::count_if(costs_, [](std::int64_t c) { return c > 0; }) >= stages_;
    if (!enough || !fill(maxima[high], true)) fill(maxima[high], false);
    return bounds_;
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }

  void spend(std::size_t steps) {
    steps_ += static_cast<std::int64_t>(steps);
    if (steps_ > split_steps) throw split_too_hard("the search for a split under the capacity of ranks was given up.");
  }

  /// Sums of memory fit 63 bits.
  void demand_sums() const {
    std::int64_t live = 0, sum = 0;
    for (rank_use const& r : ranks_)
      for (byte_counts const& m : r.moments()) live = std::max(live, *std::ranges::max_element(m));
    for (int b = 0; b < blocks_; ++b) {
      std::int64_t need = 0;
      bool const beyond = __builtin_mul_overflow(memory_.activations[index(b)], live, &need) ||
                          __builtin_add_overflow(sum, need, &sum) ||
                          __builtin_add_overflow(sum, memory_.weights[index(b)], &sum);
      demand(!beyond, "the memory of all blocks adds up to more than 63 bits.");
    }
  }

  /// The costs of all runs of blocks, from `least` on, ascending.
  byte_counts possible_maxima(std::int64_t least) const {
    byte_counts all{least};
    for (int first = 0; first < blocks_; ++first) {
      std::int64_t sum = 0;
      for (int b = first; b < blocks_; ++b)
        if ((sum += costs_[index(b)]) > least) all.push_back(sum);
    }
    std::ranges::sort(all);
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }

  /// Whether there is a split whose stages cost at most `most`; the bounds are its smallest.
  bool fill(std::int64_t most, bool costly) {
    most_ = most;
    costly_ = costly;
    for (auto& states : dead_) states.clear();
    for (rank_use& r : ranks_) r.clear();
    for (int s = 0; s < stages_; ++s) widest_[index(s)] = typical_.widest(costs_, most - start_cost(s));
    bool const placed = add(stages_ - 1, blocks_ - 1) && place(0, 0);
    bounds_[index(stages_)] = blocks_;
    return placed;
  }

  /// Whether the blocks from `first` on fit the stages from s on.
  bool place(int s, int first) {
    if (s == stages_) return first == blocks_ - 1;
    if (blocks_ - first < stages_ - s || !reaches_end(s, first) || !ranks_hold(s, first)) return false;
    auto& dead = dead_[index(s) * (index(blocks_) + 1) + index(first)];
    byte_counts const used = used_from(s);
    spend(dead.size());
    if (std::ranges::any_of(dead, [&](byte_counts const& other) { return no_more(other, used); })) return false;
    std::int64_t cost = start_cost(s);
    for (int end = first;; ++end) {
      bounds_[index(s) + 1] = end;
      if ((end > first || s == stages_ - 1) && (!costly_ || cost > 0) && place(s + 1, end)) return true;
      if (end < blocks_ - 1 && costs_[index(end)] <= most_ - cost && add(s, end)) {
        cost += costs_[index(end)];
        continue;
      }
      while (end > first) remove(s, --end);
      dead.push_back(used);
      return false;
    }
  }

  std::int64_t start_cost(int s) const { return s == stages_ - 1 ? costs_.back() : 0; }

  /// What the ranks use that still have a stage to fill.
  byte_counts used_from(int s) const {
    byte_counts all;
    for (rank_use const& r : ranks_)
      if (r.index_of(s) < r.stages().size()) all.insert(all.end(), r.used().begin(), r.used().end());
    return all;
  }

  /// Adds a block to a stage; false, and nothing done, where a rank has no room for it.
  bool add(int s, int block) {
    std::int64_t const weights = memory_.weights[index(block)], activations = memory_.activations[index(block)];
    for (std::size_t const r : holders_[index(s)])
      if (!ranks_[r].has_room(s, weights, activations, memory_.capacity)) return false;
    for (std::size_t const r : holders_[index(s)]) ranks_[r].add(s, weights, activations);
    return true;
  }

  void remove(int s, int block) {
    for (std::size_t const r : holders_[index(s)])
      ranks_[r].add(s, -memory_.weights[index(block)], -memory_.activations[index(block)]);
  }

  /// Whether the stages from s on could take all blocks from `first` on, had each stage its ranks' room for itself.
  bool reaches_end(int s, int first) {
    for (; s < stages_ && first < blocks_ - 1; ++s) {
      std::int64_t cost = start_cost(s);
      int end = first;
      while (end < blocks_ - 1 && costs_[index(end)] <= most_ - cost && add(s, end)) cost += costs_[index(end++)];
      for (int b = first; b < end; ++b) remove(s, b);
      first = end;
    }
    return first == blocks_ - 1;
  }

  /// Whether the ranks have room for as many typical blocks as are left, all of them as small as the smallest may be.
  bool ranks_hold(int s, int first) {
    std::int64_t const left = copies_ * typical_.from(first);
    std::int64_t count = 0;
    for (std::size_t r = 0; r < ranks_.size() && count < left; ++r) {
      byte_counts room;
      for (std::int64_t const used : ranks_[r].used()) room.push_back(memory_.capacity - used);
      count += most_on(ranks_[r], ranks_[r].index_of(s), room, left);
    }
    return count >= left;
  }

  /// The most typical blocks that a rank's stages can take from one on, or more than `enough`.
  std::int64_t most_on(rank_use const& r, std::size_t from, byte_counts room, std::int64_t enough) {
    if (from == r.stages().size()) return 0;
    spend(1);
    std::int64_t best = 0;
    for (std::int64_t count = 0; count <= widest_[index(r.stages()[from])] && std::ranges::min(room) >= 0; ++count) {
      best = std::max(best, count + most_on(r, from + 1, room, enough));
      if (best >= enough) break;
      for (std::size_t m = 0; m < room.size(); ++m)
        room[m] -= typical_.weights + typical_.activations * r.moments()[m][from];
    }
    return best;
  }

  byte_counts const& costs_;
  rank_memory const& memory_;
  typical_blocks typical_;
  int blocks_, stages_;
  std::vector<int> bounds_;
  byte_counts widest_;  // by stage: the most typical blocks that its cost allows
  std::vector<rank_use> ranks_;
  std::vector<std::vector<std::size_t>> holders_;  // ranks, by stage
  std::vector<std::vector<byte_counts>> dead_;     // by stage and block: what was used where there was no way on
  std::int64_t copies_ = 2;                        // ranks that hold a stage, at least
  std::int64_t most_ = 0, steps_ = 0;
  bool costly_ = false;
};

}  // namespace detail

/// Blocks of these costs over the stages of a sound schedule, under a capacity of each rank.
template <detail::cost_range Costs>
layer_split<std::vector<int>> split_layers(Costs const& costs, schedule_view const& plan, rank_memory const& memory) {
  auto const free = split_layers(costs, plan.stages());  // checks the costs
  std::vector<std::int64_t> const live(static_cast<std::size_t>(plan.stages()), 0);
  detail::check_memory({memory.weights, memory.activations, live}, free.blocks(), plan.stages());
  detail::byte_counts wide(std::ranges::begin(costs), std::ranges::end(costs));
  if (std::ranges::all_of(wide, [](std::int64_t c) { return c == 0; })) std::ranges::fill(wide, 1);
  std::int64_t least = 0;
  for (int s = 0; s < free.stages(); ++s) least = std::max(least, load_of(free, wide, s));
  std::vector<int> bounds = detail::rank_splitter(wide, plan, memory).run(least);
  for (std::size_t s = bounds.size() - 1; s > 0; --s) bounds[s] -= bounds[s - 1];
  return split_by_counts(std::span(bounds).subspan(1), free.blocks());
}

}  // namespace moiety
