// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/forced.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

template <class Selection> using router_of = mo::router<mo::sigmoid, Selection>;

/// Slots that each expert gets of `tokens` tokens whose ids are checked to be distinct.
template <class Selection>
std::vector<std::int64_t> counts(std::int64_t tokens, std::int64_t experts, mo::batch const& about = {}) {
  mo::context<> ctx{mo::host{.threads = 2}};
  mo::routing const r = router_of<Selection>{}.forward(ctx, mo::matrix<float>(tokens, experts), about);
  CHECK_NOTHROW(r.check());
  std::vector<std::int64_t> of(static_cast<std::size_t>(experts));
  for (std::int64_t s = 0; s < tokens * Selection::count; ++s) ++of[static_cast<std::size_t>(r.ids[s])];
  return of;
}

/// Whether c of n draws is within four standard deviations of the probability p.
bool plausible(std::int64_t c, std::int64_t n, double p) {
  double const mean = static_cast<double>(n) * p;
  return std::abs(static_cast<double>(c) - mean) <= 4 * std::sqrt(mean * (1 - p)) + 1e-9;
}

template <class Selection> std::vector<std::int32_t> ids(mo::batch const& about, std::int64_t tokens, int key = 0) {
  mo::context<> ctx;
  Selection selection;
  selection.key = mo::seed{key};
  mo::routing const r = router_of<Selection>{selection}.forward(ctx, mo::matrix<float>(tokens, 16), about);
  return {r.ids, r.ids + tokens * Selection::count};
}

}  // namespace

static_assert(mo::selection<mo::forced<3, mo::imbalance::round_robin>> && mo::writes_scores<mo::forced<3>>);

TEST_CASE("round robin takes experts in turn: counts differ by one at most, from any first row on") {
  for (std::int64_t const tokens : {0, 1, 5, 37})
    for (std::int64_t const first : {0, 1, 1000003}) {
      auto const c = counts<mo::forced<3, mo::imbalance::round_robin>>(tokens, 7, {.first_row = first});
      for (std::int64_t e = 0; e < 7; ++e) {
        // slots 3 first … 3 (first + tokens) − 1 that are e modulo 7
        auto const below = [&](std::int64_t slots) { return (slots + 6 - e) / 7; };
        CHECK(c[static_cast<std::size_t>(e)] == below(3 * (first + tokens)) - below(3 * first));
      }
      CHECK(*std::max_element(c.begin(), c.end()) - *std::min_element(c.begin(), c.end()) <= 1);
    }
}

TEST_CASE("one hot gives the first K experts every token") {
  CHECK(counts<mo::forced<2, mo::imbalance::one_hot>>(9, 5) == std::vector<std::int64_t>{9, 9, 0, 0, 0});
}

TEST_CASE("uniform draws give every expert and every pair an equal share") {
  constexpr std::int64_t tokens = 20000, experts = 6;
  for (std::int64_t const c : counts<mo::forced<2>>(tokens, experts)) CHECK(plausible(c, tokens, 2.0 / 6));
  mo::context<> ctx;
  mo::routing const drawn = router_of<mo::forced<2>>{}.forward(ctx, mo::matrix<float>(tokens, experts));
  std::vector<std::int64_t> pairs(36);
  for (std::int64_t t = 0; t < tokens; ++t)
    ++pairs[static_cast<std::size_t>(drawn.expert(t, 0) * 6 + drawn.expert(t, 1))];
  for (std::size_t p = 0; p < 36; ++p) CHECK((p % 7 == 0 ? pairs[p] == 0 : plausible(pairs[p], tokens, 1.0 / 30)));
}

TEST_CASE("zipf draws experts in proportion to 1 / (e + 1), then again among the rest") {
  constexpr std::int64_t tokens = 20000, experts = 5;
  double const rate[] = {1, 1.0 / 2, 1.0 / 3, 1.0 / 4, 1.0 / 5}, all = 137.0 / 60;
  auto const first = counts<mo::forced<1, mo::imbalance::zipf>>(tokens, experts);
  auto const both = counts<mo::forced<2, mo::imbalance::zipf>>(tokens, experts);
  for (std::size_t e = 0; e < 5; ++e) {
    CHECK(plausible(first[e], tokens, rate[e] / all));
    double later = 0;
    for (std::size_t other = 0; other < 5; ++other)
      if (other != e) later += rate[other] / all * rate[e] / (all - rate[other]);
    CHECK(plausible(both[e], tokens, rate[e] / all + later));
  }
}

TEST_CASE_TEMPLATE("draws are a function of the place in the global batch, however that was cut", Selection,
                   mo::forced<3>, mo::forced<3, mo::imbalance::zipf>, mo::forced<3, mo::imbalance::round_robin>) {
  auto whole = ids<Selection>({.first_row = 100, .step = 3}, 50);
  auto const head = ids<Selection>({.first_row = 100, .step = 3}, 20),
             tail = ids<Selection>({.first_row = 120, .step = 3}, 30);
  CHECK(std::equal(head.begin(), head.end(), whole.begin()));
  CHECK(std::equal(tail.begin(), tail.end(), whole.begin() + 60));
  CHECK(ids<Selection>({.first_row = 101, .step = 3}, 50) != whole);
}

TEST_CASE_TEMPLATE("draws differ by step, by layer and by key", Selection, mo::forced<3>,
                   mo::forced<3, mo::imbalance::zipf>) {
  auto const base = ids<Selection>({.step = 3}, 50);
  CHECK(ids<Selection>({.step = 3}, 50) == base);
  CHECK(ids<Selection>({.step = 4}, 50) != base);
  CHECK(ids<Selection>({.step = 3, .layer = 1}, 50) != base);
  CHECK(ids<Selection>({.step = 3}, 50, 1) != base);
}

TEST_CASE("weights are those of the scores, whatever was drawn") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(40, 8, 3);
  auto const check = [&]<class Imbalance>(Imbalance const&) {
    mo::routing const r = router_of<mo::forced<3, Imbalance>>{}.forward(ctx, z);
    for (std::int64_t t = 0; t < 40; ++t)
      for (std::int64_t j = 0; j < 3; ++j) CHECK(r.weight(t, j) == mo::logistic(z(t, r.expert(t, j))));
  };
  check(mo::imbalance::uniform{});
  check(mo::imbalance::zipf{});
  check(mo::imbalance::round_robin{});
  check(mo::imbalance::one_hot{});
}

TEST_CASE("logits that are not finite change no id") {
  mo::context<> ctx;
  mo::matrix<float> z(3, 4);
  auto const clean = router_of<mo::forced<2>>{}.forward(ctx, z);
  z(1, 0) = z(1, 3) = std::numeric_limits<float>::quiet_NaN();
  auto const r = router_of<mo::forced<2>>{}.forward(ctx, z, mo::non_finite::sanitise);
  for (std::int64_t s = 0; s < 6; ++s) {
    CHECK(r.ids[s] == clean.ids[s]);
    CHECK(std::isfinite(r.weights[s]));
  }
}
