// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/partition.hpp>

#include <moiety/core/random.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

using numbers = std::vector<std::int64_t>;

/// Random numbers below `limit`, from a fixed seed.
class dice {
 public:
  explicit dice(std::uint64_t stream) : stream_(stream) {}
  std::int64_t operator()(std::int64_t limit) {
    return static_cast<std::int64_t>(mo::random_word(mo::seed{17}, stream_, next_++)) % limit;
  }
  numbers several(std::int64_t count, std::int64_t limit) {
    numbers all;
    for (std::int64_t i = 0; i < count; ++i) all.push_back((*this)(limit));
    return all;
  }

 private:
  std::uint64_t stream_, next_ = 0;
};

template <class Split> std::vector<int> bounds_of(Split const& split) {
  std::vector<int> bounds;
  for (int s = 0; s <= split.stages(); ++s) bounds.push_back(split.first(s));
  return bounds;
}

template <class Split> std::int64_t worst(Split const& split, numbers const& costs) {
  std::int64_t most = 0;
  for (int s = 0; s < split.stages(); ++s) most = std::max(most, mo::load_of(split, costs, s));
  return most;
}

/// Calls f(bounds) for every split of n blocks into p stages that are not empty, in ascending order of the bounds.
template <class F> void for_each_split(int n, int p, std::vector<int>& bounds, F const& f) {
  if (static_cast<int>(bounds.size()) == p) {
    bounds.push_back(n);
    f(bounds);
    bounds.pop_back();
    return;
  }
  int const left = p - static_cast<int>(bounds.size());
  for (int b = bounds.back() + 1; b <= n - left; ++b) {
    bounds.push_back(b);
    for_each_split(n, p, bounds, f);
    bounds.pop_back();
  }
}

std::int64_t sum(numbers const& values, int from, int to) {
  std::int64_t total = 0;
  for (int b = from; b < to; ++b) total += values[static_cast<std::size_t>(b)];
  return total;
}

struct best_split {
  std::int64_t most = -1;
  std::vector<int> bounds;
  int ways = 0;  // splits with that maximum
};

/// By trying all. Stages without a block of positive cost count only under a capacity or if there are too few of these.
best_split brute_force(numbers costs, int p, mo::stage_memory const* memory = nullptr) {
  best_split best;
  auto const positive = std::count_if(costs.begin(), costs.end(), [](std::int64_t c) { return c > 0; });
  if (positive == 0) costs.assign(costs.size(), 1);
  std::vector<int> bounds{0};
  for_each_split(static_cast<int>(costs.size()), p, bounds, [&](std::vector<int> const& at) {
    std::int64_t most = 0;
    for (std::size_t s = 0; s + 1 < at.size(); ++s) {
      std::int64_t const load = sum(costs, at[s], at[s + 1]);
      if (load == 0 && positive >= p && memory == nullptr) return;
      if (memory != nullptr) {
        std::int64_t need = 0;
        for (int b = at[s]; b < at[s + 1]; ++b)
          need += memory->weights[static_cast<std::size_t>(b)] +
                  memory->live[s] * memory->activations[static_cast<std::size_t>(b)];
        if (need > memory->capacity) return;
      }
      most = std::max(most, load);
    }
    if (best.most < 0 || most < best.most) best = {most, at, 0};
    best.ways += most == best.most ? 1 : 0;
  });
  return best;
}

/// What stages get that are filled until a threshold is passed, as a well-known framework does. The thresholds are
/// those of `believed`, the loads those of `costs`.
numbers threshold_greedy(numbers const& costs, int p, numbers const& believed) {
  auto const total = static_cast<double>(sum(believed, 0, static_cast<int>(believed.size())));
  numbers loads(static_cast<std::size_t>(p), 0);
  std::size_t stage = 0;
  double filled = 0;
  for (std::size_t b = 0; b < costs.size(); ++b) {
    if (filled > total * (static_cast<double>(stage + 1) / p) && stage + 1 < loads.size()) ++stage;
    loads[stage] += costs[b];
    filled += static_cast<double>(believed[b]);
  }
  return loads;
}

numbers threshold_greedy(numbers const& costs, int p) { return threshold_greedy(costs, p, costs); }

std::int64_t most_of(numbers const& loads) { return *std::max_element(loads.begin(), loads.end()); }

/// The split with the least difference between the costliest and the cheapest stage.
best_split least_spread(numbers const& costs, int p) {
  best_split best;
  std::int64_t spread = std::numeric_limits<std::int64_t>::max();
  std::vector<int> bounds{0};
  for_each_split(static_cast<int>(costs.size()), p, bounds, [&](std::vector<int> const& at) {
    std::int64_t most = 0, least = std::numeric_limits<std::int64_t>::max();
    for (std::size_t s = 0; s + 1 < at.size(); ++s) {
      most = std::max(most, sum(costs, at[s], at[s + 1]));
      least = std::min(least, sum(costs, at[s], at[s + 1]));
    }
    if (most - least < spread) spread = most - least, best = {most, at, 1};
  });
  return best;
}

}  // namespace

TEST_CASE("optima, bounds and ties that were found by trying all splits, and what filling to a threshold gives") {
  struct {
    numbers costs;
    int stages;
    std::int64_t most;
    int ways;  // 0: not counted
    std::vector<int> bounds;
    numbers greedy;
  } const cases[] = {
      {numbers(4, 1), 4, 1, 1, {0, 1, 2, 3, 4}, {2, 1, 1, 0}},
      {numbers(8, 1), 4, 2, 1, {0, 2, 4, 6, 8}, {3, 2, 2, 1}},
      {numbers(32, 1), 4, 8, 1, {0, 8, 16, 24, 32}, {9, 8, 8, 7}},
      {numbers(7, 1), 3, 3, 6, {0, 1, 4, 7}, {3, 2, 2}},
      {{3, 3, 7, 1}, 3, 7, 1, {0, 2, 3, 4}, {6, 7, 1}},
      {{1, 1, 1, 9}, 4, 9, 1, {0, 1, 2, 3, 4}, {12, 0, 0, 0}},
      {{9, 1, 1, 1}, 4, 9, 1, {0, 1, 2, 3, 4}, {9, 1, 1, 1}},
      {{0, 2, 2, 2, 2, 2, 2, 2, 2, 0, 5}, 4, 6, 6, {0, 3, 6, 9, 11}, {6, 6, 4, 5}},
      {numbers(4, 1), 2, 2, 1, {0, 2, 4}, {3, 1}},
      {numbers(6, 1), 3, 2, 1, {0, 2, 4, 6}, {3, 2, 1}},
      {{1, 3, 1, 3, 1, 3, 1, 3}, 4, 4, 1, {0, 2, 4, 6, 8}, {5, 4, 4, 3}},
      {numbers(30, 3),
       10,
       9,
       0,
       {0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30},
       {12, 9, 9, 9, 9, 9, 6, 12, 9, 6}},  // a threshold of 62.99999999999999
      {{0, 4096, 4096, 0, 804432, 0, 0}, 2, 804432, 0, {0, 3, 7}, {812624, 0}},
  };
  for (auto const& c : cases) {
    auto const split = mo::split_layers(c.costs, c.stages);
    CHECK(worst(split, c.costs) == c.most);
    CHECK(bounds_of(split) == c.bounds);
    if (c.ways > 0) CHECK(brute_force(c.costs, c.stages).ways == c.ways);
    CHECK(threshold_greedy(c.costs, c.stages) == c.greedy);
    CHECK(most_of(c.greedy) >= c.most);
  }
}

TEST_CASE("every split is the optimum, with the smallest bounds, for random costs of up to 14 blocks and 6 stages") {
  dice roll(1);
  for (int n = 1; n <= 14; ++n)
    for (int p = 1; p <= std::min(n, 6); ++p)
      for (int round = 0; round < 6; ++round) {
        numbers const costs = roll.several(n, round % 3 == 0 ? 3 : 50);  // many zeros in every third
        auto const split = mo::split_layers(costs, p);
        best_split const best = brute_force(costs, p);
        CAPTURE(n);
        CAPTURE(p);
        CHECK(bounds_of(split) == best.bounds);
        if (sum(costs, 0, n) > 0) CHECK(worst(split, costs) == best.most);
      }
}

TEST_CASE("blocks that cost nothing are split by their number") {
  CHECK(bounds_of(mo::split_layers(numbers(6, 0), 3)) == std::vector<int>{0, 2, 4, 6});
  CHECK(mo::split_layers(numbers(11, 0), 4) == mo::split_layers(numbers(11, 1), 4));
}

TEST_CASE("under a capacity the split is still the optimum, or is refused when there is none") {
  dice roll(2);
  int refused = 0, bound = 0;
  for (int round = 0; round < 400; ++round) {
    int const n = 2 + static_cast<int>(roll(11)), p = 1 + static_cast<int>(roll(std::min(n, 5)));
    numbers costs = roll.several(n, round % 2 == 0 ? 20 : 3);
    bool const free = round % 2 == 1;  // some blocks cost nothing: stages of such blocks alone are then allowed
    if (!free)
      for (auto& c : costs) ++c;
    numbers const weights = roll.several(n, 30), activations = roll.several(n, 10);
    numbers live;
    for (int s = 0; s < p; ++s) live.push_back(p - s);
    mo::stage_memory const memory{weights, activations, live, 20 + roll(120)};
    best_split const best = brute_force(costs, p, &memory);
    if (best.most < 0) {
      ++refused;
      CHECK_THROWS_WITH_AS(mo::split_layers(costs, p, memory), "no split respects the capacity of the stages.",
                           mo::config_error);
      continue;
    }
    auto const split = mo::split_layers(costs, p, memory);
    if (sum(costs, 0, n) > 0) CHECK(worst(split, costs) == best.most);
    if (!free) CHECK(bounds_of(split) == best.bounds);
    bound += best.most > worst(mo::split_layers(costs, p), costs) ? 1 : 0;
  }
  CHECK(refused > 20);
  CHECK(bound > 20);
}

TEST_CASE("a capacity comes before a block that costs something for every stage") {
  numbers const costs{0, 5, 5}, weights{1, 4, 4}, activations(3, 0), live{1, 1};
  CHECK(bounds_of(mo::split_layers(costs, 2)) == std::vector<int>{0, 2, 3});
  CHECK(bounds_of(mo::split_layers(costs, 2, {weights, activations, live, 8})) == std::vector<int>{0, 2, 3});
  numbers const wide{5, 4, 4};  // the first two blocks do not fit together
  CHECK(bounds_of(mo::split_layers(costs, 2, {wide, activations, live, 8})) == std::vector<int>{0, 1, 3});
}

TEST_CASE("early ranks hold more activations, so a capacity moves blocks to later ones") {
  numbers const costs(8, 2), weights(8, 1), activations(8, 1), live{4, 3, 2, 1};
  CHECK(bounds_of(mo::split_layers(costs, 4)) == std::vector<int>{0, 2, 4, 6, 8});
  auto const split = mo::split_layers(costs, 4, {weights, activations, live, 8});
  CHECK(bounds_of(split) == std::vector<int>{0, 1, 3, 5, 8});
  CHECK(worst(split, costs) == 6);
}

TEST_CASE("filling up to a threshold is never better than the optimum, and often worse") {
  dice roll(3);
  int worse = 0;
  for (int round = 0; round < 200; ++round) {
    numbers const costs = roll.several(10, 20);
    std::int64_t const greedy = most_of(threshold_greedy(costs, 4));
    std::int64_t const exact = worst(mo::split_layers(costs, 4), costs);
    CHECK(exact <= greedy);
    worse += greedy > exact ? 1 : 0;
  }
  CHECK(worse > 50);
}

TEST_CASE("the least spread between stages is another objective") {
  numbers const costs{3, 3, 7, 1};
  CHECK(least_spread(costs, 3).most == 8);
  CHECK(worst(mo::split_layers(costs, 3), costs) == 7);
}

TEST_CASE("a factor changes nothing, and one stage more is never worse") {
  dice roll(4);
  for (int round = 0; round < 100; ++round) {
    numbers const costs = roll.several(12, 30);
    numbers scaled = costs;
    for (auto& c : scaled) c *= 1000003;
    std::int64_t before = std::numeric_limits<std::int64_t>::max();
    for (int p = 1; p <= 12; ++p) {
      auto const split = mo::split_layers(costs, p);
      CHECK(split == mo::split_layers(scaled, p));
      CHECK(worst(split, costs) <= before);
      before = worst(split, costs);
    }
  }
}

TEST_CASE("a mixture of dense and MoE layers is split by what its layers cost") {
  auto const attention = mo::attention_block{.hidden = 1024, .heads = 16}.cost();
  auto const dense = attention + mo::mlp_block{.hidden = 1024, .ffn = 2816}.cost();
  auto const routed = attention + mo::moe_block{.hidden = 1024, .ffn = 2816, .experts = 8, .active = 2}.cost();
  auto const head = mo::head_block{.hidden = 1024, .vocabulary = 32000}.cost();
  CHECK(dense.forward == 2 * 12845056);
  CHECK(routed.forward == 2 * 21504000);
  auto const blocks = [&](std::int64_t layer, int layers) {  // embedding, layers, norm, head and two that are free
    numbers costs{0};
    costs.insert(costs.end(), static_cast<std::size_t>(layers), layer / 2);
    costs.insert(costs.end(), {0, head.forward / 2, 0, 0});
    return costs;
  };
  struct {
    int layers, stages;
    std::int64_t optimum;
    numbers greedy_as_dense;  // what stages get where a layer is taken for dense, as a well-known framework does
  } const cases[] = {
      {12, 2, 150528000, {172032000, 118784000}},
      {12, 8, 43008000, {}},
      {8, 2, 107520000, {129024000, 75776000}},
  };
  for (auto const& c : cases) {
    numbers const real = blocks(routed.forward, c.layers);
    numbers const greedy = threshold_greedy(real, c.stages, blocks(dense.forward, c.layers));
    CHECK(worst(mo::split_layers(real, c.stages), real) == c.optimum);
    if (c.stages == 2) CHECK(greedy == c.greedy_as_dense);
    CHECK(most_of(greedy) > c.optimum);
    if (c.stages == 8) CHECK((most_of(greedy) == 54272000 && greedy.back() == 0));
  }
  CHECK(threshold_greedy(blocks(routed.forward, 12), 2) == numbers{150528000, 140288000});

  // the first half of the layers is dense; taking all for dense costs a fifth more
  numbers real, as_dense;
  for (int layer = 0; layer < 12; ++layer) real.push_back(layer < 6 ? dense.forward : routed.forward);
  as_dense.assign(12, dense.forward);
  std::int64_t const right = worst(mo::split_layers(real, 2), real), wrong = worst(mo::split_layers(as_dense, 2), real);
  CHECK(right == brute_force(real, 2).most);
  CHECK(static_cast<double>(wrong) > 1.15 * static_cast<double>(right));
}

TEST_CASE("splits of constants are constants") {
  constexpr auto split = mo::split_layers(std::array{1, 1, 1, 1}, 2);
  static_assert(split.first(1) == 2 && split.count(1) == 2 && split.stage_of(3) == 1 && split.stages() == 2);
  static_assert(mo::split_layers(std::array{3, 3, 7, 1}, 3).count(0) == 2);
  std::ostringstream out;
  out << split << ", " << mo::split_layers(numbers{5, 1, 1}, 2);
  CHECK(out.str() == "2 2, 1 2");
}

TEST_CASE("a split of one's own is checked") {
  std::array const counts{3, 0, 5};
  auto const split = mo::split_by_counts(counts, 8);
  CHECK(bounds_of(split) == std::vector<int>{0, 3, 3, 8});
  auto const refused = [](std::vector<int> const& given, int blocks) {
    try {
      mo::split_by_counts(given, blocks);
    } catch (mo::config_error const& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(refused({3, 4}, 8) == "the stages have fewer blocks than there are.");
  CHECK(refused({3, 6}, 8) == "the stages have more blocks than there are.");
  CHECK(refused({9, -1}, 8) == "the stages have more blocks than there are.");
  CHECK(refused({8, -1}, 8) == "a stage cannot have fewer than no blocks.");
  CHECK(refused({}, 8) == "a split needs at least one stage.");
}

TEST_CASE("what cannot be split is refused with a reason") {
  auto const refused = [](numbers const& costs, int stages) {
    try {
      mo::split_layers(costs, stages);
    } catch (mo::config_error const& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  std::int64_t const huge = std::numeric_limits<std::int64_t>::max();
  CHECK(refused({1, 2, 3}, 0) == "a split needs at least one stage.");
  CHECK(refused({1, 2, 3}, 4) == "there are fewer blocks than stages, so a stage would be empty.");
  CHECK(refused({}, 1) == "there are fewer blocks than stages, so a stage would be empty.");
  CHECK(refused({1, -2, 3}, 2) == "the cost of a block must not be negative.");
  CHECK(refused({huge, 1}, 1) == "the costs of all blocks add up to more than 63 bits.");
  CHECK(refused({huge, 0, 0}, 2).empty());
  std::vector<std::uint64_t> const wide{std::numeric_limits<std::uint64_t>::max()};
  CHECK_THROWS_AS(mo::split_layers(wide, 1), mo::config_error);
  numbers const two(2, 1), one(1, 1), negative{1, -1};
  CHECK_THROWS_AS(mo::split_layers(two, 1, {one, two, one, 9}), mo::config_error);
  CHECK_THROWS_AS(mo::split_layers(two, 1, {two, two, two, 9}), mo::config_error);
  CHECK_THROWS_AS(mo::split_layers(two, 1, {two, negative, one, 9}), mo::config_error);
  CHECK_THROWS_AS(mo::split_layers(two, 1, {numbers{huge, huge}, two, one, huge}), mo::config_error);
}

TEST_CASE("the load of a rank is that of all its stages, where the schedule puts them") {
  numbers const costs{1, 2, 3, 4, 5, 6, 7, 8};
  auto const split = mo::split_by_counts(std::array{2, 2, 2, 2}, 8);  // 3, 7, 11, 15
  auto const looped = mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  auto const v = mo::make_schedule(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  auto const both = mo::make_schedule(mo::dual_pipe{}, {.ranks = 4, .chunks = 2, .microbatches = 8});
  CHECK(mo::rank_loads(split, costs, looped) == numbers{3 + 11, 7 + 15});
  CHECK(mo::rank_loads(split, costs, v) == numbers{3 + 15, 7 + 11});
  CHECK(mo::rank_loads(split, costs, both) == numbers{18, 18, 18, 18});
  CHECK_THROWS_WITH_AS(mo::rank_loads(split, costs, mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 4})),
                       "a split into 4 stages was given a schedule of 2.", mo::config_error);
}
