// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/communication_balance.hpp>

#include "losses/differences.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

/// Three tokens with slots {0, 1}, {0, 2}, {1, 0}: the first of two devices is sent all three, the second one.
mo::routing_statistics three_tokens() {
  mo::routing_statistics s(4, 2, 2);
  s.view().unit->tokens = 3;
  std::int64_t const reached[4] = {3, 0, 1, 0};
  double const sums[4] = {1.5, 0.5, 0.75, 0.25};
  for (std::size_t e = 0; e < 4; ++e)
    s.view().experts[e].reached = reached[e], s.view().experts[e].probability.add(sums[e]);
  return s;
}

}  // namespace

static_assert(mo::loss<mo::communication_balance<8, 3, mo::over::sequence>>);
static_assert(mo::device_groups<mo::communication_balance<8, 3>> == 8);
static_assert(mo::counted_groups<mo::communication_balance<8, 3>> == 8);

TEST_CASE("by hand; the coefficient does not enter") {
  // D / (M T²) Σ r P = 2 / (M · 9) · (3 · 2 + 1 · 1)
  CHECK(mo::communication_balance<2, 1>{.coefficient = 9}.value(three_tokens()) ==
        doctest::Approx(14.0 / 9).epsilon(1e-15));
  CHECK(mo::communication_balance<2, 2>{}.value(three_tokens()) == doctest::Approx(7.0 / 9).epsilon(1e-15));
  std::vector<double> z(4), p{1, 2, 3, 4}, d(4);
  mo::span_row<double> logits(z.data(), 4), dp(p.data(), 4), dz(d.data(), 4);
  mo::communication_balance<2, 1>{}.token_gradient(three_tokens(), 9.0, logits, dp, dz);
  CHECK(p == std::vector<double>{7, 8, 5, 6});
  CHECK(d == std::vector<double>(4));
}

TEST_CASE("a token counts once for a device, however many of its slots go there") {
  mo::context<differences::in_double> ctx;
  std::vector<std::int32_t> ids{0, 1, 2, 0, 4, 1, 5, 4, 3};
  std::vector<double> weights(9);
  std::vector<mo::token_state> states(3, mo::token_state::routed);
  mo::routing_view<double> const routes{3, 6, 3, ids.data(), weights.data(), states.data()};
  mo::matrix<double> const z(3, 6);
  auto const of = [&](std::int64_t groups) {
    return mo::statistics(ctx, z, differences::softmax{}, routes, groups).reached();
  };
  CHECK(of(3) == std::vector<std::int64_t>{2, 2, 2});
  CHECK(of(2) == std::vector<std::int64_t>{2, 2});
  CHECK(of(1) == std::vector<std::int64_t>{3});
  CHECK(of(6) == std::vector<std::int64_t>{2, 2, 1, 1, 2, 1});
  CHECK(of(0).empty());
  CHECK_THROWS_WITH_AS(of(4), "the statistics of 6 experts cannot be those of 4 equal groups.", mo::data_error);
  CHECK_THROWS_AS(of(-1), mo::data_error);
}

TEST_CASE("1 where every token is sent to M devices evenly, D / M at collapse, 0 for no token") {
  mo::routing_statistics even(8, 4, 4), collapsed(8, 4, 4);
  even.view().unit->tokens = collapsed.view().unit->tokens = 6;
  for (std::size_t g = 0; g < 4; ++g)
    even.view().experts[2 * g].reached = 3, even.view().experts[2 * g + 1].probability.add(1.5);
  CHECK(mo::communication_balance<4, 2>{}.value(even) == 1);
  collapsed.view().experts[6].reached = 6, collapsed.view().experts[7].probability.add(6);
  CHECK(mo::communication_balance<4, 2>{}.value(collapsed) == 2);
  CHECK(mo::communication_balance<4, 2>{}.value(mo::routing_statistics(8, 4, 4)) == 0);
}

TEST_CASE("statistics must divide into the groups and have counted them") {
  CHECK_THROWS_WITH_AS(
      (mo::communication_balance<3, 1>{}.value(three_tokens())),
      "communication_balance of 3 groups was given statistics of 4 experts, which the groups do not divide.",
      mo::data_error);
  CHECK_THROWS_WITH_AS((mo::communication_balance<4, 1>{}.value(three_tokens())),
                       "communication_balance of 4 groups was given statistics that count the tokens of 2.",
                       mo::data_error);
}

TEST_CASE_TEMPLATE("gradients equal differences", Router, differences::softmax, differences::sigmoid) {
  differences::check_all<mo::communication_balance<1, 1>, Router>();
  differences::check_all<mo::communication_balance<3, 2>, Router>();
  differences::check_all<mo::communication_balance<4, 2>, Router>();
  differences::check_all<mo::communication_balance<8, 3>, Router>();
}

TEST_CASE("parts add up to the whole") {
  differences::check_merge<mo::communication_balance<8, 3>, differences::softmax>();
}
