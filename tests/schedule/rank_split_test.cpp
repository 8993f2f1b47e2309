// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/rank_split.hpp>

#include "instrumented.hpp"

#include <moiety/core/random.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

using numbers = std::vector<std::int64_t>;

/// Random numbers from 0 on, below `limit`, from a fixed seed.
class dice {
 public:
  std::int64_t operator()(std::int64_t limit) {
    return static_cast<std::int64_t>(mo::random_word(mo::seed{29}, 0, next_++)) % limit;
  }
  numbers several(int count, std::int64_t limit) {
    numbers all;
    for (int i = 0; i < count; ++i) all.push_back((*this)(limit));
    return all;
  }

 private:
  std::uint64_t next_ = 0;
};

template <class Split> numbers loads(Split const& split, numbers const& values) {
  numbers all;
  for (int s = 0; s < split.stages(); ++s) all.push_back(mo::load_of(split, values, s));
  return all;
}

/// Bytes of the fullest rank, by the analysis of schedules.
template <class Split>
std::int64_t fullest(Split const& split, mo::schedule_view const& plan, numbers const& weights,
                     numbers const& activations) {
  numbers const held = mo::rank_loads(split, weights, plan), sizes = loads(split, activations);
  std::int64_t most = 0;
  for (int r = 0; r < plan.ranks(); ++r)
    most = std::max(most, held[static_cast<std::size_t>(r)] + mo::peak_activations(plan, r, [&](int stage) {
                            return sizes[static_cast<std::size_t>(stage)];
                          }));
  return most;
}

/// Calls f(counts) for all ways to give n blocks to p stages that are not empty, the smallest bounds first.
template <class F> void for_each_split(int n, int p, std::vector<int>& counts, F const& f) {
  if (p == 1) {
    counts.push_back(n);
    f(counts);
    counts.pop_back();
    return;
  }
  for (int first = 1; first <= n - p + 1; ++first) {
    counts.push_back(first);
    for_each_split(n - first, p - 1, counts, f);
    counts.pop_back();
  }
}

struct best_split {
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
  bool costly = false;  // every stage costs something
  std::vector<int> counts;
};

/// The least maximum, then stages that all cost something, then the smallest bounds; by trying all splits.
best_split brute_force(numbers costs, mo::schedule_view const& plan, mo::rank_memory const& memory) {
  numbers const weights(memory.weights.begin(), memory.weights.end());
  numbers const activations(memory.activations.begin(), memory.activations.end());
  if (std::ranges::all_of(costs, [](std::int64_t c) { return c == 0; })) std::ranges::fill(costs, 1);
  best_split best;
  std::vector<int> counts;
  int const n = static_cast<int>(costs.size());
  for_each_split(n, plan.stages(), counts, [&](std::vector<int> const& at) {
    auto const split = mo::split_by_counts(at, n);
    if (fullest(split, plan, weights, activations) > memory.capacity) return;
    numbers const stages = loads(split, costs);
    std::int64_t const most = std::ranges::max(stages);
    bool const costly = std::ranges::min(stages) > 0;
    if (most < best.most || (most == best.most && costly && !best.costly)) best = {most, costly, at};
  });
  return best;
}

std::vector<mo::schedule> several_plans() {
  return {mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 2, .chunks = 2, .microbatches = 4}),
          mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 3, .chunks = 2, .microbatches = 6}),
          mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 2, .chunks = 3, .microbatches = 4}),
          mo::make_schedule(mo::looped_bfs{}, {.ranks = 2, .chunks = 2, .microbatches = 3}),
          mo::make_schedule(mo::interleaved_zb1p{}, {.ranks = 2, .chunks = 2, .microbatches = 4}),
          mo::make_schedule(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = 5}),
          mo::make_schedule(mo::zb_v{}, {.ranks = 3, .chunks = 2, .microbatches = 5}),
          mo::make_schedule(mo::dual_pipe{}, {.ranks = 4, .chunks = 2, .microbatches = 8}),
          mo::make_schedule(mo::dual_pipe_v{}, {.ranks = 2, .chunks = 2, .microbatches = 4}),
          mo::make_schedule(mo::one_f_one_b{}, {.ranks = 4, .microbatches = 6})};
}

std::vector<int> counts_of(mo::layer_split<std::vector<int>> const& split) {
  std::vector<int> counts;
  for (int s = 0; s < split.stages(); ++s) counts.push_back(split.count(s));
  return counts;
}

}  // namespace

TEST_CASE("under a capacity of ranks the split is the optimum, or is refused when there is none, for up to 14 blocks") {
  dice roll;
  int refused = 0, moved = 0;
  for (mo::schedule const& plan : several_plans()) {
    int const stages = mo::schedule_view(plan).stages();
    for (int round = 0; round < 400; ++round) {
      int const n = stages + static_cast<int>(roll(15 - stages));
      numbers const costs = roll.several(n, round % 3 == 0 ? 3 : 20);  // many zeros in every third
      numbers const weights = roll.several(n, 30), activations = roll.several(n, 10);
      auto const free = mo::split_layers(costs, stages);
      std::int64_t const needed = fullest(free, plan, weights, activations);
      mo::rank_memory const memory{weights, activations, needed * (70 + roll(35)) / 100};
      best_split const best = brute_force(costs, plan, memory);
      CAPTURE(mo::schedule_view(plan).name());
      CAPTURE(round);
      if (best.counts.empty()) {
        ++refused;
        CHECK_THROWS_WITH_AS(mo::split_layers(costs, plan, memory), "no split respects the capacity of the ranks.",
                             mo::config_error);
        continue;
      }
      auto const split = mo::split_layers(costs, plan, memory);
      CHECK(counts_of(split) == best.counts);
      if (needed <= memory.capacity) CHECK(split == free);
      moved += split != free ? 1 : 0;
    }
  }
  MESSAGE(refused, " refused, ", moved, " moved");
  CHECK(refused > 50);
  CHECK(moved > 50);
}

TEST_CASE("stages that fit one by one need not fit their rank") {
  // Ranks hold stages 0, 2 and 1, 3; the heavy blocks are 0 and 2.
  auto const plan = mo::make_schedule(mo::looped_bfs{}, {.ranks = 2, .chunks = 2, .microbatches = 1});
  numbers const costs(5, 1), weights{4, 1, 4, 1, 1}, activations(5, 0);
  CHECK(counts_of(mo::split_layers(costs, plan, {weights, activations, 8})) == std::vector<int>{1, 1, 1, 2});
  CHECK(counts_of(mo::split_layers(costs, plan, {weights, activations, 7})) == std::vector<int>{1, 2, 1, 1});
  CHECK_THROWS_AS(mo::split_layers(costs, plan, {weights, activations, 5}), mo::config_error);
}

TEST_CASE("models of equal layers are split on many ranks in a moment") {
  auto const plan = mo::make_schedule(mo::interleaved_zb1p{}, {.ranks = 8, .chunks = 2, .microbatches = 32});
  numbers costs(50, 45), weights(50, 997), activations(50, 21);
  costs.front() = 0, costs.back() = 191;
  weights.front() = weights.back() = 498;
  activations.front() = 0, activations.back() = 1;
  std::int64_t before = 0;
  for (std::int64_t const capacity : {20000, 9000, 8300, 8000}) {
    auto const split = mo::split_layers(costs, plan, {weights, activations, capacity});
    CHECK(fullest(split, plan, weights, activations) <= capacity);
    std::int64_t const most = std::ranges::max(loads(split, costs));
    CHECK(most >= before);
    before = most;
  }
  CHECK(before > std::ranges::max(loads(mo::split_layers(costs, 16), costs)));
  CHECK_THROWS_WITH_AS(mo::split_layers(costs, plan, {weights, activations, 7000}),
                       "no split respects the capacity of the ranks.", mo::config_error);
}

TEST_CASE("a search that would take too long is given up, and says so" * doctest::skip(instrumented)) {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 8, .chunks = 4, .microbatches = 16});
  dice roll;
  numbers const costs = roll.several(120, 1000), weights = roll.several(120, 1000),
                activations = roll.several(120, 100);
  std::int64_t const needed = fullest(mo::split_layers(costs, 32), plan, weights, activations);
  CHECK_THROWS_WITH_AS(mo::split_layers(costs, plan, {weights, activations, needed * 7 / 10}),
                       "the search for a split under the capacity of ranks was given up.", mo::split_too_hard);
}

TEST_CASE("what cannot be split over ranks is refused with a reason") {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  numbers const ones(6, 1);
  auto const refused = [&](numbers const& costs, mo::schedule_view const& of, mo::rank_memory const& memory) {
    try {
      mo::split_layers(costs, of, memory);
    } catch (mo::config_error const& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  std::int64_t const huge = std::numeric_limits<std::int64_t>::max();
  CHECK(refused(ones, plan, {ones, ones, huge}).empty());
  CHECK(refused(ones, plan, {ones, ones, -1}) == "no split respects the capacity of the ranks.");
  CHECK(refused(ones, plan, {ones, ones, -huge - 1}) == "no split respects the capacity of the ranks.");
  CHECK(refused({1, 1, 1}, plan, {ones, ones, 9}) == "there are fewer blocks than stages, so a stage would be empty.");
  CHECK(refused({1, 1, 1, 1, -1}, plan, {ones, ones, 9}) == "the cost of a block must not be negative.");
  CHECK(refused({1, 1, 1, 1, 1}, plan, {ones, ones, 9}) ==
        "a split under a capacity needs the weights and activations of every block.");
  CHECK(refused(ones, plan, {ones, {}, 9}) ==
        "a split under a capacity needs the weights and activations of every block.");
  numbers const negative{1, 1, 1, 1, 1, -1}, large(6, huge / 8);
  CHECK(refused(ones, plan, {negative, ones, 9}) == "memory must not be negative.");
  CHECK(refused(ones, plan, {ones, large, huge}) == "the memory of all blocks adds up to more than 63 bits.");
  mo::schedule const astray("astray", {.ranks = 2, .microbatches = 1}, {0, 1}, false,
                            {{{1, 0, mo::computation::forward}}, {{0, 0, mo::computation::forward}}});
  CHECK(refused(ones, astray, {ones, ones, 9}) == "a stage works on a rank that it does not live on.");
}
