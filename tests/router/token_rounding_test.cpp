// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/token_rounding.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

using choices = std::set<std::pair<std::int64_t, int>>;  // token, expert

choices chosen(mo::routing_view<float> const& r) {
  choices all;
  for (std::int64_t t = 0; t < r.tokens; ++t)
    for (std::int64_t j = 0; j < r.slots; ++j)
      if (r.has_row(t, j)) all.emplace(t, r.expert(t, j));
  return all;
}

bool takes_part(std::vector<std::uint8_t> const& mask, std::int64_t t) {
  return mask.empty() || mask[static_cast<std::size_t>(t)] != 0;
}

/// The K best experts of a row, of equal scores the lower first; −∞ is removed.
std::vector<int> best_of(float const* row, std::int64_t experts, int k) {
  std::vector<int> order;
  for (int e = 0; e < experts; ++e)
    if (row[e] > -infinity) order.push_back(e);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
  order.resize(std::min<std::size_t>(order.size(), static_cast<std::size_t>(k)));
  return order;
}

/// What the definition gives; scores of −∞ are removed. `limited` counts experts that could not be rounded up.
template <int K, int Tile, class Rounding>
choices expected(mo::matrix<float> const& scores, std::vector<std::uint8_t> const& mask, std::int64_t step) {
  choices all;
  std::int64_t sum = 0;
  for (int e = 0; e < scores.cols(); ++e) {
    std::vector<std::int64_t> mine, others;
    for (std::int64_t t = 0; t < scores.rows(); ++t) {
      if (!takes_part(mask, t) || !(scores(t, e) > -infinity)) continue;
      auto const best = best_of(scores.row(t), scores.cols(), K);
      (std::find(best.begin(), best.end(), e) != best.end() ? mine : others).push_back(t);
    }
    auto const better = [&](std::int64_t a, std::int64_t b) { return scores(a, e) > scores(b, e); };
    std::stable_sort(mine.begin(), mine.end(), better);
    std::stable_sort(others.begin(), others.end(), better);
    auto const f = static_cast<std::int64_t>(mine.size()), over = f % Tile, missing = Tile - over;
    double added = 0, dropped = 0;
    bool const can_rise = over != 0 && missing <= static_cast<std::int64_t>(others.size());
    for (std::int64_t i = 0; can_rise && i < missing; ++i)
      added += static_cast<double>(scores(others[static_cast<std::size_t>(i)], e));
    for (std::int64_t i = f - over; i < f; ++i)
      dropped += static_cast<double>(scores(mine[static_cast<std::size_t>(i)], e));
    std::uint32_t const random =
        mo::random_word(mo::seed{0}, mo::stream_of("router.token_rounding") + static_cast<std::uint64_t>(step),
                        static_cast<std::uint64_t>(e));
    bool up = false;
    if constexpr (std::is_same_v<Rounding, mo::rounding::nearest>) up = over >= Tile - over;
    if constexpr (std::is_same_v<Rounding, mo::rounding::up>) up = true;
    if constexpr (std::is_same_v<Rounding, mo::rounding::nearest_by_score>) up = added < dropped;
    if constexpr (std::is_same_v<Rounding, mo::rounding::stochastic>)
      up = random * 0x1p-32 < static_cast<double>(over) / Tile;
    if constexpr (std::is_same_v<Rounding, mo::rounding::balanced>)
      up = std::llabs(sum + missing) < std::llabs(sum - over);
    up = up && can_rise;
    std::vector<std::int64_t> kept = mine;
    if (up)
      kept.insert(kept.end(), others.begin(), others.begin() + missing);
    else
      kept.resize(static_cast<std::size_t>(f - over));
    for (std::int64_t const t : kept) all.emplace(t, e);
    sum += static_cast<std::int64_t>(kept.size()) - f;
  }
  return all;
}

template <int K, int Tile, class Rounding, class... Others>
using rounded = mo::router<mo::raw_logits, mo::token_rounding<K, Tile, Rounding>, Others...>;

template <int K, int Tile, class Rounding> void compare() {
  for (std::int64_t const tokens : {0, 1, 2, 37, 200})
    for (std::int64_t const experts : {1, 3, 8, 40}) {
      CAPTURE(tokens);
      CAPTURE(experts);
      auto const z = rows::drawn<float>(tokens, experts, 11, true);
      std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
      for (std::size_t t = 1; t < mask.size(); t += 4) mask[t] = 0;
      mo::context<> one, three{mo::host{.threads = 3}};
      auto const a = rounded<K, Tile, Rounding>{}.forward(one, z, {.step = 3});
      CHECK(chosen(a) == expected<K, Tile, Rounding>(z, {}, 3));
      auto const b = rounded<K, Tile, Rounding>{}.forward(three, z, {.mask = mask, .step = 4});
      CHECK(chosen(b) == expected<K, Tile, Rounding>(z, mask, 4));
      CHECK_NOTHROW(b.check());
      using selection = mo::token_rounding<K, Tile, Rounding>;
      CHECK(static_cast<std::int64_t>(chosen(a).size()) <= selection::rows(tokens, experts));
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t j = 0; j < experts; ++j)
          CHECK(a.weight(t, j) == (a.has_row(t, j) ? z(t, a.expert(t, j)) : 0.0f));
    }
}

template <class Rounding> void compare_tiles() {
  compare<2, 4, Rounding>();
  compare<1, 16, Rounding>();
  compare<3, 1, Rounding>();
  compare<2, 128, Rounding>();
}

std::vector<std::int64_t> counts(choices const& of, std::int64_t experts) {
  std::vector<std::int64_t> c(static_cast<std::size_t>(experts));
  for (auto const& [t, e] : of) ++c[static_cast<std::size_t>(e)];
  return c;
}

mo::rounding::facts of_remainder(std::int64_t over, std::int64_t tile, std::int64_t sum = 0, std::uint32_t random = 0) {
  return {over, tile, 0.0, 0.0, sum, random};
}

}  // namespace

TEST_CASE("a rounding rule sees the remainder, the scores at stake, the sum before, and a random word") {
  using namespace mo::rounding;
  CHECK(nearest::rounds_up(of_remainder(2, 4)));
  CHECK_FALSE(nearest::rounds_up(of_remainder(1, 4)));
  CHECK(nearest::rounds_up(of_remainder(3, 5)));
  CHECK_FALSE(nearest::rounds_up(of_remainder(2, 5)));
  CHECK(up::rounds_up(of_remainder(1, 4)));
  CHECK_FALSE(down::rounds_up(of_remainder(3, 4)));
  CHECK(stochastic::rounds_up(of_remainder(1, 4, 0, 0x3fffffffu)));
  CHECK_FALSE(stochastic::rounds_up(of_remainder(1, 4, 0, 0x40000000u)));
  CHECK_FALSE(stochastic::rounds_up(of_remainder(127, 128, 0, 0xffffffffu)));
  CHECK(nearest_by_score::rounds_up({1, 4, 1.0, 2.0, 0, 0}));
  CHECK_FALSE(nearest_by_score::rounds_up({1, 4, 2.0, 2.0, 0, 0}));
  CHECK(balanced::rounds_up(of_remainder(1, 4, -3)));
  CHECK_FALSE(balanced::rounds_up(of_remainder(2, 4, 0)));
}

TEST_CASE("each rule chooses what its definition says: nearest, up, down") {
  compare_tiles<mo::rounding::nearest>();
  compare_tiles<mo::rounding::up>();
  compare_tiles<mo::rounding::down>();
}

TEST_CASE("each rule chooses what its definition says: stochastic, nearest by score, balanced") {
  compare_tiles<mo::rounding::stochastic>();
  compare_tiles<mo::rounding::nearest_by_score>();
  compare_tiles<mo::rounding::balanced>();
}

TEST_CASE("counts are multiples of the tile, and change by less than one, where there are tokens enough") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(500, 6, 12);
  for (std::int64_t t = 0; t < 500; ++t) z(t, 5) -= 3;
  auto const before = counts(chosen(mo::router<mo::raw_logits, mo::top_k<2>>{}.forward(ctx, z)), 6);
  auto const check = [&]<class Rounding>(Rounding const&) {
    auto const after = counts(chosen(rounded<2, 32, Rounding>{}.forward(ctx, z)), 6);
    for (std::size_t e = 0; e < 6; ++e) {
      CHECK(after[e] % 32 == 0);
      CHECK(std::abs(after[e] - before[e]) < 32);
    }
  };
  check(mo::rounding::nearest{});
  check(mo::rounding::up{});
  check(mo::rounding::down{});
  check(mo::rounding::stochastic{});
  check(mo::rounding::nearest_by_score{});
  check(mo::rounding::balanced{});
}

TEST_CASE("balanced rounding keeps the number of rows to within half a tile") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(500, 16, 13);
  auto const kept = chosen(rounded<2, 32, mo::rounding::balanced>{}.forward(ctx, z)).size();
  CHECK(std::abs(static_cast<int>(kept) - 1000) <= 16);
}

TEST_CASE("stochastic rounding is a function of key, step and layer, and right on average") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(100, 4, 14);
  using router = rounded<1, 32, mo::rounding::stochastic>;
  auto const at = [&](std::int64_t step, int key, std::int64_t layer = 0) {
    return chosen(router{mo::token_rounding<1, 32, mo::rounding::stochastic>{mo::seed{key}}}.forward(
        ctx, z, {.step = step, .layer = layer}));
  };
  CHECK(at(1, 0) == at(1, 0));
  std::set<choices> by_step, by_key, by_layer;
  double total = 0;
  for (std::int64_t step = 0; step < 400; ++step) {
    total += static_cast<double>(at(step, 0).size());
    by_step.insert(at(step, 0)), by_key.insert(at(7, static_cast<int>(step))), by_layer.insert(at(7, 0, step));
  }
  CHECK(by_step.size() > 4);
  CHECK(by_key.size() > 4);
  CHECK(by_layer.size() > 4);
  CHECK(std::abs(total / 400 - 100) < 4 * 32 / 20.0);  // four standard deviations of 400 means of four experts
}

TEST_CASE("groups and bias limit what a token chooses and what an expert adds") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(60, 6, 15);
  std::vector<float> const bias{0.5f, -0.25f, 0, 1, -9, -9};
  using router = rounded<2, 8, mo::rounding::up, mo::selection_bias, mo::groups<3, 2, mo::group_score::largest>>;
  auto const r = router{}.with_bias(bias.data()).forward(ctx, z);
  mo::matrix<float> seen(60, 6);
  for (std::int64_t t = 0; t < 60; ++t) {
    std::vector<std::pair<float, std::int64_t>> groups;
    for (std::int64_t e = 0; e < 6; ++e) seen(t, e) = z(t, e) + bias[static_cast<std::size_t>(e)];
    for (std::int64_t g = 0; g < 3; ++g) groups.emplace_back(-std::max(seen(t, 2 * g), seen(t, 2 * g + 1)), g);
    std::sort(groups.begin(), groups.end());
    seen(t, 2 * groups[2].second) = seen(t, 2 * groups[2].second + 1) = -infinity;
  }
  CHECK(chosen(r) == expected<2, 8, mo::rounding::up>(seen, {}, 0));
  for (auto const& [t, e] : chosen(r)) CHECK((seen(t, e) > -infinity));
}

TEST_CASE("an expert that too few tokens could join is rounded down, and one without a token stays so") {
  mo::context<> ctx;
  mo::matrix<float> z(6, 3);
  for (std::int64_t t = 0; t < 6; ++t) z(t, 0) = 1, z(t, 1) = 0.5f;
  auto const c = counts(chosen(rounded<1, 4, mo::rounding::up>{}.forward(ctx, z)), 3);
  CHECK(c == std::vector<std::int64_t>{4, 0, 0});  // 8 is more than there are
}

TEST_CASE("logits that are not finite cost a token those experts only") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(40, 4, 16);
  for (std::int64_t t = 0; t < 40; t += 5) z(t, t % 4) = -infinity;
  auto const r = rounded<2, 8, mo::rounding::up>{}.forward(ctx, z, mo::non_finite::sanitise);
  CHECK(chosen(r) == expected<2, 8, mo::rounding::up>(z, {}, 0));
  for (std::int64_t s = 0; s < 160; ++s) CHECK(std::isfinite(r.weights[s]));
}
