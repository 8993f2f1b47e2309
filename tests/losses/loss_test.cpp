// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/loss.hpp>

#include "router/example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

struct no_value {
  static constexpr std::string_view name = "no_value";
  using unit = mo::over::micro_batch;
  float coefficient = 0;
};
using balance = mo::load_balance<>;
using both = mo::losses<balance, mo::router_z>;
using grouped = mo::losses<mo::device_balance<3>, mo::communication_balance<4, 2>, mo::load<>>;

/// Says nothing of itself.
struct terse {
  static constexpr std::string_view name = "terse";
  using unit = mo::over::micro_batch;
  float coefficient = 0;
  double value(mo::statistics_view const&) const { return 0; }
  template <mo::score_row Row>
  void token_gradient(mo::statistics_view const&, typename Row::value_type, Row const&, Row&, Row&) const {}
};

}  // namespace

static_assert(mo::loss<balance> && mo::loss<mo::router_z> && !mo::loss<no_value> && !mo::loss<int>);
static_assert(mo::loss_unit<mo::over::sequence> && !mo::loss_unit<int>);
static_assert(mo::is_losses<both> && mo::is_losses<mo::losses<>> && !mo::is_losses<balance>);
static_assert(both::contains<balance> && !both::contains<mo::load_balance<mo::over::sequence>>);
static_assert(both::any_over<mo::over::micro_batch> && !both::any_over<mo::over::sequence>);

static_assert(mo::loss<terse> && mo::needs_probabilities<terse> && !mo::uses_step_counts<terse>);
static_assert(mo::device_groups<terse> == 1 && mo::counted_groups<terse> == 0);
static_assert(both::needs_probabilities && grouped::needs_probabilities);
static_assert(!mo::losses<>::needs_probabilities && !mo::losses<mo::router_z, mo::load<>>::needs_probabilities);
static_assert(both::counted_groups == 0 && grouped::counted_groups == 4);
static_assert(both::groups_divide(7) && grouped::groups_divide(24) && !grouped::groups_divide(8));
static_assert(!both::uses_step_counts);
static_assert(mo::losses<mo::load_balance<mo::over::global_batch, mo::counts::prefix>>::uses_step_counts);

TEST_CASE("statistics of the worked example") {
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  mo::router<mo::softmax, mo::top_k<2>> const router;
  mo::routing_statistics const s = mo::statistics(ctx, z, router, router.forward(ctx, z));
  CHECK(s.tokens() == 6);
  CHECK(s.slots() == 2);
  CHECK(s.counts() == std::vector<std::int64_t>{5, 2, 3, 2});
  double const mean[4] = {.364436, .186843, .261876, .186846};
  for (std::size_t e = 0; e < 4; ++e) CHECK(std::abs(s.probabilities()[e] / 6 - mean[e]) < 1e-6);
}

TEST_CASE("statistics of parts, in any order, are those of the whole to the last bit") {
  mo::context<> ctx{mo::host{.threads = 2}};
  auto logits = ctx.matrix(500, 9);
  mo::fill_normal(ctx, logits, mo::seed{2});
  mo::router<mo::sigmoid, mo::top_k<2>> const router;
  auto const of = [&](std::int64_t first, std::int64_t count) {
    auto const part = logits.rows(first, count);
    return mo::statistics(ctx, part, router, router.forward(ctx, part));
  };
  mo::routing_statistics forwards, backwards;
  std::vector<std::pair<int, int>> const parts{{0, 1}, {1, 199}, {200, 0}, {200, 300}};
  for (auto const& [first, count] : parts) forwards += of(first, count);
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) backwards += of(part->first, part->second);
  CHECK(forwards == of(0, 500));
  CHECK(backwards == of(0, 500));
}

TEST_CASE("the gradient of logits must have their shape") {
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  mo::router<mo::softmax, mo::top_k<2>> const router;
  mo::routing_statistics const s = mo::statistics(ctx, z, router, router.forward(ctx, z));
  mo::matrix<float> wrong(6, 3);
  CHECK_THROWS_WITH_AS(balance{}.gradient(ctx, s, z, router, wrong),
                       "the gradient of logits [6 x 4] was given the shape [6 x 3].", mo::data_error);
}

TEST_CASE("statistics take a routing of their logits, with distinct experts in range") {
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  mo::router<mo::softmax, mo::top_k<2>> const router;
  mo::routing<float> routes = router.forward(ctx, z);
  CHECK_THROWS_WITH_AS(mo::statistics(ctx, z.rows(0, 5), router, routes),
                       "the statistics of logits [5 x 4] were given a routing of the shape [6 x 4].", mo::data_error);
  CHECK_THROWS_WITH_AS(mo::statistics(ctx, mo::matrix<float>(6, 3), router, routes),
                       "the statistics of logits [6 x 3] were given a routing of the shape [6 x 4].", mo::data_error);
  routes.ids[3] = 4;
  CHECK_THROWS_WITH_AS(mo::statistics(ctx, z, router, routes),
                       "the routing gives token 1 in slot 1 expert 4, outside 0 … 3.", mo::data_error);
  routes.ids[3] = routes.ids[2];
  CHECK_THROWS_WITH_AS(mo::statistics(ctx, z, router, routes),
                       "the routing gives token 1 in slot 1 expert 0, which an earlier slot has.", mo::data_error);
}
