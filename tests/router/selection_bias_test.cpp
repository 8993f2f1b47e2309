// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/selection_bias.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"
#include "router/example.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

std::vector<float> updated(mo::selection_bias const& rule, std::vector<std::int64_t> const& counts,
                           std::vector<float> bias) {
  rule.update(counts, bias);
  return bias;
}

/// A user's own: a bias that counts double.
struct doubled {
  float const* values = nullptr;
  void forward(mo::score_row auto& row) const {
    row.map_indexed([&](auto s, int e) { return s + 2 * static_cast<decltype(s)>(values[e]); });
  }
};
struct without_values {
  void forward(mo::score_row auto&) const {}
};

using biased = mo::router<mo::sigmoid, mo::top_k<2>, mo::selection_bias>;
using unbiased = mo::router<mo::sigmoid, mo::top_k<2>>;

}  // namespace

static_assert(mo::bias_rule<mo::selection_bias> && mo::bias_rule<doubled> && !mo::bias_rule<without_values>);
static_assert(biased::has_selection_bias && !unbiased::has_selection_bias);

TEST_CASE("an expert above the mean loses the rate, one below gains it, one at the mean keeps its bias") {
  mo::selection_bias const rule{.rate = 0.25f};
  CHECK(updated(rule, {2, 6, 4}, {0, 0, 0}) == std::vector{0.25f, -0.25f, 0.0f});
  CHECK(updated(rule, {0, 0, 1}, {1, 2, 3}) == std::vector{1.25f, 2.25f, 2.75f});  // the mean is a third
  CHECK(updated(rule, {5, 5, 5}, {1, 2, 3}) == std::vector{1.0f, 2.0f, 3.0f});
  CHECK(updated(rule, {0, 0}, {1, 2}) == std::vector{1.0f, 2.0f});
  CHECK(updated(rule, {9}, {1}) == std::vector{1.0f});
}

TEST_CASE("the update by hand of a step with the default rate") {
  auto const b = updated({}, {10, 20, 30, 40}, {0, 0, 0, 0});
  CHECK(b == std::vector{1e-3f, 1e-3f, -1e-3f, -1e-3f});
}

TEST_CASE("the worked example: counts 5, 2, 3, 2 move the bias by the rate, and no weight") {
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  using softmax = mo::router<mo::softmax, mo::selection_bias, mo::top_k<2>>;
  mo::routing const plain = softmax{}.forward(ctx, z);
  std::vector<std::int64_t> counts(4);
  for (std::int64_t s = 0; s < 12; ++s) ++counts[static_cast<std::size_t>(plain.ids[s])];
  CHECK(counts == std::vector<std::int64_t>{5, 2, 3, 2});
  auto const bias = updated({.rate = 1e-3f}, counts, {0, 0, 0, 0});
  CHECK(bias == std::vector{-1e-3f, 1e-3f, 0.0f, 1e-3f});
  mo::routing const moved = softmax{}.with_bias(bias.data()).forward(ctx, z);
  for (std::int64_t t = 0; t < 6; ++t)
    for (std::int64_t j = 0; j < 2; ++j) {
      CHECK(moved.expert(t, j) == plain.expert(t, j));
      CHECK(moved.weight(t, j) == plain.weight(t, j));
    }
  CHECK(std::abs(moved.weight(0, 0) - .643914f) < 1e-6f);
  CHECK(std::abs(moved.weight(0, 1) - .236883f) < 1e-6f);
}

TEST_CASE("centred, the changes sum to zero") {
  mo::selection_bias const rule{.rate = 0.5f, .centred = true};
  // signs +, +, +, −: their mean is a half
  CHECK(updated(rule, {1, 1, 1, 9}, {0, 0, 0, 0}) == std::vector{0.25f, 0.25f, 0.25f, -0.75f});
  CHECK(updated(rule, {7, 7}, {1, 2}) == std::vector{1.0f, 2.0f});
}

TEST_CASE("a rate of zero changes nothing, not even the last bit") {
  std::vector<float> const bias{0.1f, -0.0f, 1e-30f};
  CHECK(updated({.rate = 0, .centred = true}, {1, 2, 9}, bias) == bias);
  CHECK(updated({.rate = 0}, {1, 2, 9}, bias) == bias);
}

TEST_CASE("counts are integers: one slot is seen among any number") {
  mo::selection_bias const rule{.rate = 1};
  std::vector<float> const up_down{1, -1};
  for (std::int64_t const n : {255, 256, 257, 16777216, 16777217, 33554433})  // beyond bf16, beyond float
    CHECK(updated(rule, {n, n + 1}, {0, 0}) == up_down);
  std::int64_t const large = std::int64_t{1} << 55;  // beyond double
  CHECK(updated(rule, {large, large + 1}, {0, 0}) == up_down);
  CHECK(updated(rule, {large, large, large}, {0, 0, 0}) == std::vector{0.0f, 0.0f, 0.0f});
  CHECK(updated(rule, {large - 1, large, large + 1}, {0, 0, 0}) == std::vector{1.0f, 0.0f, -1.0f});
}

TEST_CASE("counts of another number of experts are refused with both numbers, and nothing is written") {
  std::vector<std::int64_t> const counts{1, 2, 3};
  std::vector<float> bias{5, 6};
  CHECK_THROWS_WITH_AS(mo::selection_bias{}.update(counts, bias),
                       "a selection bias of 2 experts was given the counts of 3.", mo::data_error);
  CHECK(bias == std::vector{5.0f, 6.0f});
}

TEST_CASE("a rate that is negative or not finite is refused") {
  for (float const rate : {-1e-3f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
    CHECK_THROWS_WITH_AS(mo::selection_bias{.rate = rate}.check(),
                         doctest::Contains("the rate of mo::selection_bias must be finite and not negative, but is"),
                         mo::config_error);
  CHECK_NOTHROW(mo::selection_bias{.rate = 0}.check());
}

TEST_CASE("the bias moves the choice, and the weights stay those of the scores") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(50, 6, 3);
  std::array<float, 6> const bias{0, 0, 5, 0, 0, 4};
  mo::routing const moved = biased{}.with_bias(bias.data()).forward(ctx, z);
  mo::routing const plain = biased{}.forward(ctx, z), none = unbiased{}.forward(ctx, z);
  for (std::int64_t t = 0; t < 50; ++t) {
    CHECK(moved.expert(t, 0) == (z(t, 2) > z(t, 5) ? 2 : moved.expert(t, 0)));
    CHECK((moved.expert(t, 0) == 2 || moved.expert(t, 0) == 5));
    CHECK((moved.expert(t, 1) == 2 || moved.expert(t, 1) == 5));
    for (std::int64_t j = 0; j < 2; ++j) {
      CHECK(moved.weight(t, j) == mo::logistic(z(t, moved.expert(t, j))));
      CHECK(plain.expert(t, j) == none.expert(t, j));  // no values are zeros
      CHECK(plain.weight(t, j) == none.weight(t, j));
    }
  }
}

TEST_CASE("a bias far above the scores leaves the weights exact: they are gathered again, not subtracted") {
  mo::context<> ctx;
  mo::matrix<float> z(1, 4);
  for (std::int64_t e = 0; e < 4; ++e) z(0, e) = -18.5f - static_cast<float>(e);  // scores from 1e-8 down
  std::array<float, 4> const bias{0, 12, 12.5f, 0};
  mo::routing const r = mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>, mo::renormalised>{
      mo::selection_bias{
          .values =
              bias.data()}}.forward(ctx, z);
  CHECK(r.expert(0, 0) == 2);
  CHECK(r.expert(0, 1) == 1);
  double const a = std::exp(-20.5), b = std::exp(-19.5);
  CHECK(r.weight(0, 0) == doctest::Approx(a / (a + b)).epsilon(1e-6));
  CHECK(r.weight(0, 1) == doctest::Approx(b / (a + b)).epsilon(1e-6));
  mo::routing const scored = biased{}.with_bias(bias.data()).forward(ctx, z);
  CHECK(scored.weight(0, 0) == mo::logistic(z(0, 2)));
  CHECK(scored.weight(0, 1) == mo::logistic(z(0, 1)));
}

TEST_CASE_TEMPLATE("so it does for other scores, with groups and without, and at any weight rule", Score, mo::sigmoid,
                   mo::sqrt_softplus, mo::softmax) {
  mo::context<> ctx;
  mo::matrix<float> z(1, 8);
  for (std::int64_t e = 0; e < 8; ++e) z(0, e) = -18.5f - static_cast<float>(e);
  z(0, 7) = 0;  // softmax needs a logit that is not small
  std::array<float, 8> const bias{0, 1000, 1001, 0, 0, 0, 0, 0};
  auto const check = [&]<class... Roles>(Roles const&...) {
    mo::routing const plain = mo::router<Score, mo::precomputed<2>, Roles...>{}.forward(
        ctx, z, {.experts = std::array<std::int32_t, 2>{2, 1}});
    auto const same = [&](mo::routing<float> const& r) {
      CHECK(r.expert(0, 0) == 2);
      CHECK(r.expert(0, 1) == 1);
      for (std::int64_t j = 0; j < 2; ++j) {
        CHECK(r.weight(0, j) > 0);
        CHECK(r.weight(0, j) == plain.weight(0, j));
      }
    };
    using alone = mo::router<Score, mo::selection_bias, mo::top_k<2>, Roles...>;
    using grouped = mo::router<Score, mo::selection_bias, mo::groups<4, 2>, mo::top_k<2>, Roles...>;
    using by_largest =
        mo::router<Score, mo::selection_bias, mo::groups<4, 2, mo::group_score::largest>, mo::top_k<2>, Roles...>;
    same(alone{}.with_bias(bias.data()).forward(ctx, z));
    same(grouped{}.with_bias(bias.data()).forward(ctx, z));
    same(by_largest{}.with_bias(bias.data()).forward(ctx, z));
    return plain.weight(0, 0);
  };
  double const logit = -20.5, total = std::exp(-19.5) + std::exp(-20.5);
  double const score = std::is_same_v<Score, mo::sqrt_softplus> ? std::sqrt(std::exp(logit)) : std::exp(logit);
  CHECK(check() == doctest::Approx(score).epsilon(1e-6));
  double const renormalised = check(mo::renormalised{}), of_selected = check(mo::softmax_of_selected{});
  CHECK(of_selected == doctest::Approx(std::exp(logit) / total).epsilon(1e-6));
  if (!std::is_same_v<Score, mo::sqrt_softplus>) CHECK(renormalised == doctest::Approx(of_selected).epsilon(1e-6));
}

TEST_CASE("a negative bias can put every score below zero, and a bias of a user's own works alike") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(20, 5, 4);
  std::array<float, 5> const low{-9, -9, -2, -9, -3};
  mo::routing const r = biased{}.with_bias(low.data()).forward(ctx, z);
  mo::routing const twice = mo::router<mo::sigmoid, mo::top_k<2>, doubled>{doubled{low.data()}}.forward(ctx, z);
  for (std::int64_t t = 0; t < 20; ++t) {
    CHECK(r.expert(t, 0) + r.expert(t, 1) == 6);
    CHECK(twice.expert(t, 0) == 2);
    CHECK(twice.expert(t, 1) == 4);
  }
}

TEST_CASE("a step of updates evens out a skewed load") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(400, 4, 5);
  for (std::int64_t t = 0; t < 400; ++t) z(t, 0) += 2, z(t, 3) -= 2;
  std::vector<float> bias(4);
  mo::selection_bias const rule{.rate = 0.02f};
  std::vector<std::int64_t> first, counts;
  for (int step = 0; step < 60; ++step) {
    mo::routing const r = biased{}.with_bias(bias.data()).forward(ctx, z);
    counts.assign(4, 0);
    for (std::int64_t s = 0; s < 800; ++s) ++counts[static_cast<std::size_t>(r.ids[s])];
    if (step == 0) first = counts;
    rule.update(counts, bias);
  }
  CHECK(first[0] > 380);
  for (std::int64_t const c : counts) CHECK(std::abs(c - 200) < 60);
}
