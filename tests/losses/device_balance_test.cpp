// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/device_balance.hpp>

#include "losses/differences.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

/// Three tokens with slots {0, 1}, {0, 2}, {1, 0}.
mo::routing_statistics three_tokens() {
  mo::routing_statistics s(4, 2);
  s.view().unit->tokens = 3;
  std::int64_t const counts[4] = {3, 2, 1, 0};
  double const sums[4] = {1.5, 0.5, 0.75, 0.25};
  for (std::size_t e = 0; e < 4; ++e)
    s.view().unit->chosen += counts[e], s.view().experts[e].count = counts[e],
                                        s.view().experts[e].probability.add(sums[e]);
  return s;
}

template <class Loss> std::vector<double> gradient(mo::statistics_view const& of) {
  std::vector<double> z(4), p{1, 2, 3, 4}, d(4);
  mo::span_row<double> logits(z.data(), 4), dp(p.data(), 4), dz(d.data(), 4);
  Loss{}.token_gradient(of, 9.0, logits, dp, dz);
  CHECK(d == std::vector<double>(4));
  return p;
}

}  // namespace

static_assert(mo::loss<mo::device_balance<2, mo::over::sequence>> && mo::loss<mo::device_balance<8>>);
static_assert(mo::device_groups<mo::device_balance<8>> == 8 && mo::counted_groups<mo::device_balance<8>> == 0);

TEST_CASE("by hand; the coefficient does not enter") {
  // D / (k T²) Σ C P = 2 / (2 · 9) · (5 · 2 + 1 · 1)
  CHECK(mo::device_balance<2>{.coefficient = 9}.value(three_tokens()) == doctest::Approx(11.0 / 9).epsilon(1e-15));
  CHECK(gradient<mo::device_balance<2>>(three_tokens()) == std::vector<double>{6, 7, 4, 5});
}

TEST_CASE("a device for each expert is load_balance, one device for all is 1") {
  auto const s = three_tokens();
  CHECK(mo::device_balance<4>{}.value(s) == mo::load_balance<>{}.value(s));
  CHECK(gradient<mo::device_balance<4>>(s) == gradient<mo::load_balance<>>(s));
  CHECK(mo::device_balance<1>{}.value(s) == doctest::Approx(1).epsilon(1e-15));
}

TEST_CASE("1 at perfect balance, the smaller of D and E / k at collapse, 0 for no token") {
  differences::problem even(60, 60, 60, 1);
  for (double& z : even.logits) z = 0;
  CHECK(mo::device_balance<4>{}.value(even.statistics<differences::softmax>(0)) == doctest::Approx(1).epsilon(1e-14));
  mo::routing_statistics collapsed(8, 2);
  collapsed.view().unit->tokens = 5, collapsed.view().unit->chosen = 10;
  collapsed.view().experts[2].count = collapsed.view().experts[3].count = 5;
  collapsed.view().experts[3].probability.add(5);
  CHECK(mo::device_balance<2>{}.value(collapsed) == 2);
  CHECK(mo::device_balance<4>{}.value(collapsed) == 4);
  CHECK(mo::device_balance<8>{}.value(collapsed) == 4);
  CHECK(mo::device_balance<2>{}.value(mo::routing_statistics(4, 1)) == 0);
}

TEST_CASE("groups that do not divide the experts are a data_error") {
  CHECK_THROWS_WITH_AS(mo::device_balance<3>{}.value(three_tokens()),
                       "device_balance of 3 groups was given statistics of 4 experts, which the groups do not divide.",
                       mo::data_error);
}

TEST_CASE_TEMPLATE("gradients equal differences", Router, differences::softmax, differences::sigmoid) {
  differences::check_all<mo::device_balance<1>, Router>();
  differences::check_all<mo::device_balance<3>, Router>();
  differences::check_all<mo::device_balance<4>, Router>();
  differences::check_all<mo::device_balance<8>, Router>();
}

TEST_CASE("parts add up to the whole") { differences::check_merge<mo::device_balance<4>, differences::sigmoid>(); }
