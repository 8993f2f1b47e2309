// SPDX-License-Identifier: Apache-2.0
// How the blocks of a model (embedding, layers, head) are cut into the stages of a pipeline: contiguous, and so that the
// costliest stage costs as little as can be.
//
//   constexpr auto split = mo::split_layers(std::array{1, 1, 1, 1}, 2);   // blocks 0, 1 | 2, 3
//   split_layers(costs, stages)            the exact optimum of integer costs, of any unit: block_costs.hpp, or measured
//   split_layers(costs, stages, memory)    the same under a capacity of each stage; of each rank: rank_split.hpp
//   split_by_counts(counts, blocks)        a split of your own, checked
//
// An order with v chunks a rank needs p·v stages; rank_loads() adds them up where the schedule puts them.
//
// Of all splits with the least maximum, the one with the smallest bounds is taken (compared from the first stage on), so
// every rank finds the same; early stages, which hold the most activations, then have the fewest blocks. Every stage
// gets a block, and one that costs something where there are enough of those; under a capacity as far as that leaves
// the maximum as it is. Blocks that all cost nothing are split by their number. A factor of all costs changes nothing.
//
// The search is over the maximum: for a given one, filling stages from the last to the first, each as far as it goes,
// finds the smallest bounds if there is a split at all. O(blocks · log Σ costs).
//
// Throws config_error (and does not compile where constant): a cost below 0, a sum beyond 63 bits, no stage, fewer blocks
// than stages, memory that no split respects, counts that do not add up.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/schedule/schedule.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <ranges>
#include <span>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// The stage of every block, ascending. Stages is std::array<int, blocks> or std::vector<int>.
template <class Stages> class layer_split {
 public:
  constexpr layer_split(Stages of_block, int stages) : of_block_(std::move(of_block)), stages_(stages) {}

  constexpr int stages() const { return stages_; }
  constexpr int blocks() const { return static_cast<int>(of_block_.size()); }
  constexpr int stage_of(int block) const { return of_block_[static_cast<std::size_t>(block)]; }

  /// The first block of a stage, and how many it has.
  constexpr int first(int stage) const {
    int b = 0;
    while (b < blocks() && stage_of(b) < stage) ++b;
    return b;
  }
  constexpr int count(int stage) const { return first(stage + 1) - first(stage); }

  friend constexpr bool operator==(layer_split const&, layer_split const&) = default;

  /// The number of blocks of each stage: 9 8 8 7.
  friend std::ostream& operator<<(std::ostream& out, layer_split const& split) {
    for (int s = 0; s < split.stages(); ++s) out << (s > 0 ? " " : "") << split.count(s);
    return out;
  }

 private:
  Stages of_block_;
  int stages_;
};

/// What a stage must hold: Σ weights + live · Σ activations over its blocks, in bytes.
struct stage_memory {
  std::span<std::int64_t const> weights;      // of each block: parameters, gradients, optimiser state
  std::span<std::int64_t const> activations;  // of each block, for one micro-batch
  std::span<std::int64_t const> live;         // of each stage: micro-batches held at once, as peak_activations() says
  std::int64_t capacity = 0;                  // of each stage
};

namespace detail {

template <class Range>
concept cost_range = std::ranges::contiguous_range<Range> && std::integral<std::ranges::range_value_t<Range>>;

constexpr void demand(bool condition, char const* sentence) {
  if (!condition) throw config_error(sentence);
}

/// The search for a split; writes the first block of every stage, and the number of blocks behind the last.
class splitter {
 public:
  constexpr splitter(std::int64_t const* costs, int blocks, int stages, stage_memory const* memory, int* bounds)
      : costs_(costs), blocks_(blocks), stages_(stages), memory_(memory), bounds_(bounds), least_(stages + 1) {
    demand(blocks >= stages, "there are fewer blocks than stages, so a stage would be empty.");
    int costly = 0;  // blocks that cost something
    for (int b = 0; b < blocks; ++b) {
      demand(costs[b] >= 0, "the cost of a block must not be negative.");
      demand(costs[b] <= INT64_MAX - sum_, "the costs of all blocks add up to more than 63 bits.");
      sum_ += costs[b];
      costly += costs[b] > 0 ? 1 : 0;
    }
    int counted = 0;
    for (int b = 0; b < blocks && counted < stages; ++b)
      if (costs[b] > 0 || costly < stages) least_[++counted] = b + 1;
  }

  constexpr void run() {
    demand(fill(sum_, false), "no split respects the capacity of the stages.");
    std::int64_t least = 0, enough = sum_;
    while (least < enough) {
      std::int64_t const middle = least + (enough - least) / 2;
      if (fill(middle, false))
        enough = middle;
      else
        least = middle + 1;
    }
    if (!fill(enough, true)) fill(enough, false);
  }

 private:
  /// Whether there is a split whose stages cost at most `most`; the bounds are its smallest. Only a capacity can make
  /// `costly`, a block that costs something for every stage, ask too much.
  constexpr bool fill(std::int64_t most, bool costly) {
    int b = blocks_;
    bounds_[stages_] = blocks_;
    for (int s = stages_ - 1; s >= 0; --s) {
      std::int64_t cost = 0, weights = 0, activations = 0;
      while (b > (costly ? least_[s] : s)) {
        std::int64_t const more = costs_[b - 1];
        if (more > most - cost || !fits(s, b - 1, weights, activations)) break;
        cost += more;
        --b;
      }
      bounds_[s] = b;
    }
    return b == 0;
  }

  /// Whether stage s can take one block more; adds it if so.
  constexpr bool fits(int s, int block, std::int64_t& weights, std::int64_t& activations) const {
    if (memory_ == nullptr) return true;
    auto const at = static_cast<std::size_t>(block);
    std::int64_t need = 0;
    bool const beyond = __builtin_add_overflow(weights, memory_->weights[at], &weights) ||
                        __builtin_add_overflow(activations, memory_->activations[at], &activations) ||
                        __builtin_mul_overflow(activations, memory_->live[static_cast<std::size_t>(s)], &need) ||
                        __builtin_add_overflow(need, weights, &need);
    return !beyond && need <= memory_->capacity;
  }

  std::int64_t const* costs_;
  int blocks_, stages_;
  stage_memory const* memory_;
  int* bounds_;
  table<int> least_;  // by stage: the fewest blocks that give each stage before it one that costs something
  std::int64_t sum_ = 0;
};

constexpr void check_memory(stage_memory const& memory, int blocks, int stages) {
  demand(std::ssize(memory.weights) == blocks && std::ssize(memory.activations) == blocks,
         "a split under a capacity needs the weights and activations of every block.");
  demand(std::ssize(memory.live) == stages, "a split under a capacity needs the live micro-batches of every stage.");
  for (auto const& list : {memory.weights, memory.activations, memory.live})
    for (std::int64_t const bytes : list) demand(bytes >= 0, "memory must not be negative.");
}

/// Fills of_block, which has room for every block.
template <cost_range Costs>
constexpr void split(Costs const& costs, int stages, stage_memory const* memory, int* of_block) {
  auto const blocks = static_cast<int>(std::ranges::size(costs));
  if (memory != nullptr) check_memory(*memory, blocks, stages);
  demand(stages >= 1, "a split needs at least one stage.");
  table<std::int64_t> wide(blocks);
  bool free = true;
  for (int b = 0; b < blocks; ++b) {
    demand(std::in_range<std::int64_t>(std::ranges::data(costs)[b]),
           "the costs of all blocks add up to more than 63 bits.");
    wide[b] = static_cast<std::int64_t>(std::ranges::data(costs)[b]);
    free = free && wide[b] == 0;
  }
  for (int b = 0; free && b < blocks; ++b) wide[b] = 1;
  table<int> bounds(std::int64_t{stages} + 1);
  splitter(wide.data(), blocks, stages, memory, bounds.data()).run();
  for (int s = 0; s < stages; ++s)
    for (int b = bounds[s]; b < bounds[s + 1]; ++b) of_block[b] = s;
}

template <cost_range Costs> constexpr auto split_any(Costs const& costs, int stages, stage_memory const* memory) {
  std::vector<int> of_block(std::ranges::size(costs), 0);
  split(costs, stages, memory, of_block.data());
  return layer_split<std::vector<int>>(std::move(of_block), stages);
}

template <std::integral T, std::size_t Blocks>
constexpr auto split_any(std::array<T, Blocks> const& costs, int stages, stage_memory const* memory) {
  std::array<int, Blocks> of_block{};
  split(costs, stages, memory, of_block.data());
  return layer_split<std::array<int, Blocks>>(of_block, stages);
}

}  // namespace detail

/// Blocks of these costs over that many stages: layer_split of an array for an array, else of a vector.
template <detail::cost_range Costs> constexpr auto split_layers(Costs const& costs, int stages) {
  return detail::split_any(costs, stages, nullptr);
}

template <detail::cost_range Costs>
constexpr auto split_layers(Costs const& costs, int stages, stage_memory const& memory) {
  return detail::split_any(costs, stages, &memory);
}

/// A split given by the number of blocks of each stage. Stages may be empty here: they were asked for.
constexpr layer_split<std::vector<int>> split_by_counts(std::span<int const> counts, int blocks) {
  detail::demand(!counts.empty(), "a split needs at least one stage.");
  std::vector<int> of_block;
  int stage = 0;
  for (int const count : counts) {
    detail::demand(count >= 0, "a stage cannot have fewer than no blocks.");
    detail::demand(count <= blocks - static_cast<int>(of_block.size()), "the stages have more blocks than there are.");
    for (int i = 0; i < count; ++i) of_block.push_back(stage);
    ++stage;
  }
  detail::demand(static_cast<int>(of_block.size()) == blocks, "the stages have fewer blocks than there are.");
  return {std::move(of_block), stage};
}

/// Σ of `costs` over the blocks of a stage.
template <class Stages, detail::cost_range Costs>
constexpr std::int64_t load_of(layer_split<Stages> const& split, Costs const& costs, int stage) {
  std::int64_t sum = 0;
  for (int b = split.first(stage); b < split.first(stage + 1); ++b)
    sum += static_cast<std::int64_t>(std::ranges::data(costs)[b]);
  return sum;
}

/// Σ of `costs` over the blocks of every rank's stages; in a bidirectional schedule a stage lives on two ranks.
template <class Stages, detail::cost_range Costs>
std::vector<std::int64_t> rank_loads(layer_split<Stages> const& split, Costs const& costs, schedule_view const& plan) {
  detail::require<config_error>(split.stages() == plan.stages(), "a split into ", split.stages(),
                                " stages was given a schedule of ", plan.stages(), '.');
  std::vector<std::int64_t> loads(static_cast<std::size_t>(plan.ranks()), 0);
  for (int s = 0; s < plan.stages(); ++s) {
    std::int64_t const load = load_of(split, costs, s);
    int const home = plan.rank_of(s, 0), mirror = plan.rank_of(s, plan.microbatches() - 1);
    loads[static_cast<std::size_t>(home)] += load;
    if (mirror != home) loads[static_cast<std::size_t>(mirror)] += load;
  }
  return loads;
}

}  // namespace moiety
