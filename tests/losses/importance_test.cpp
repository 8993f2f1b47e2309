// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/importance.hpp>

#include "losses/differences.hpp"
#include "router/example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

using router = differences::softmax;

mo::routing_statistics statistics(mo::matrix_view<double const> z) {
  mo::context<differences::in_double> ctx{mo::host{.threads = 1}};
  return mo::statistics(ctx, z, router{}, router{}.forward(ctx, z));
}

/// Statistics of tokens whose probabilities sum to these.
mo::routing_statistics given(std::int64_t tokens, std::vector<double> const& sums) {
  mo::routing_statistics s(static_cast<std::int64_t>(sums.size()), 1);
  s.view().unit->tokens = tokens;
  for (std::size_t e = 0; e < sums.size(); ++e) s.view().experts[e].probability.add(sums[e]);
  return s;
}

}  // namespace

static_assert(mo::loss<mo::importance<mo::over::sequence>> && mo::loss<mo::importance<mo::over::global_batch>>);
static_assert(mo::needs_probabilities<mo::importance<>>);

TEST_CASE("by hand: the variance is that of the population; the coefficient does not enter") {
  // mean 2, deviations 1, −1, 2, −2: variance 10 / 4, over the square of the mean 10 / 16
  CHECK(mo::importance<>{.coefficient = 9}.value(given(8, {3, 1, 4, 0})) == 0.625);
  CHECK(mo::importance<>{}.value(given(3, {3, 0, 0})) == doctest::Approx(2).epsilon(1e-15));  // E − 1 at collapse
  // 2 E / T² (I − μ) = 8 / 64 · {1, −1, 2, −2}
  std::vector<double> z(4), p{1, 2, 3, 4}, d(4);
  mo::span_row<double> logits(z.data(), 4), dp(p.data(), 4), dz(d.data(), 4);
  mo::importance<>{}.token_gradient(given(8, {3, 1, 4, 0}), 2.0, logits, dp, dz);
  CHECK(p == std::vector<double>{1.25, 1.75, 3.5, 3.5});
  CHECK(d == std::vector<double>(4));
}

TEST_CASE("the worked example") {
  double const mean[4] = {.364436, .186843, .261876, .186846};
  double wanted = 0;
  for (double const m : mean) wanted += 4 * (m - .25) * (m - .25);
  CHECK(std::abs(mo::importance<>{}.value(statistics(example::make_logits<double>())) - wanted) < 1e-5);
}

TEST_CASE("0 and no gradient at perfect balance, for one expert and for no token: never NaN") {
  for (int const experts : {1, 2, 3, 7, 40, 384}) {
    mo::matrix<double> const z(experts == 7 ? 1 : 13, experts);
    auto const s = statistics(z);
    CHECK(std::abs(mo::importance<>{}.value(s)) < 1e-28);
    mo::context<differences::in_double> ctx;
    mo::matrix<double> d(z.rows(), z.cols());
    mo::importance<>{}.gradient(ctx, s, z, router{}, d);
    for (double const v : d) CHECK(std::abs(v) < 1e-14);
  }
  CHECK(mo::importance<>{}.value(statistics(mo::matrix<double>(0, 4))) == 0);
}

TEST_CASE_TEMPLATE("gradients equal differences", Router, differences::softmax, differences::sigmoid) {
  differences::check_all<mo::importance<>, Router>();
}

TEST_CASE("parts add up to the whole") { differences::check_merge<mo::importance<>, differences::sigmoid>(); }
