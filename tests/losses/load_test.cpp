// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/load.hpp>

#include "losses/differences.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

mo::routing_statistics given(std::int64_t slots, std::vector<std::int64_t> const& counts) {
  mo::routing_statistics s(static_cast<std::int64_t>(counts.size()), slots);
  for (std::size_t e = 0; e < counts.size(); ++e)
    s.view().experts[e].count = counts[e], s.view().unit->tokens += counts[e];
  s.view().unit->tokens /= slots;
  return s;
}

}  // namespace

static_assert(mo::loss<mo::load<mo::over::sequence>> && mo::loss<mo::load<mo::over::global_batch>>);
static_assert(!mo::needs_probabilities<mo::load<>>);

TEST_CASE("by hand: the variance is that of the population; the coefficient does not enter") {
  CHECK(mo::load<>{.coefficient = 9}.value(given(2, {3, 1, 4, 0})) == 0.625);  // as for importance
  CHECK(mo::load<>{}.value(given(2, {6, 6, 0, 0, 0, 0})) == 2);                // E / k − 1 at collapse
  CHECK(mo::load<>{}.value(given(1, {0, 0, 5})) == 2);
}

TEST_CASE("exactly 0 at perfect balance, for one expert and where nothing is routed") {
  for (std::int64_t const each : {1, 3, 7, 1000003})
    for (std::size_t const experts : {1u, 3u, 7u, 60u, 384u})
      CHECK(mo::load<>{}.value(given(1, std::vector<std::int64_t>(experts, each))) == 0);
  CHECK(mo::load<>{}.value(mo::routing_statistics(4, 2)) == 0);
}

TEST_CASE("large counts keep their differences") {
  std::int64_t const many = std::int64_t{1} << 40;
  CHECK(mo::load<>{}.value(given(1, {many + 1, many - 1})) == doctest::Approx(0x1p-80).epsilon(1e-9));
}

TEST_CASE_TEMPLATE("counts have no gradient, and differences say the same", Router, differences::softmax,
                   differences::sigmoid) {
  differences::check_all<mo::load<>, Router>();
  std::vector<double> z(3, 1.0), p{1, 2, 3}, d{4, 5, 6};
  mo::span_row<double> logits(z.data(), 3), dp(p.data(), 3), dz(d.data(), 3);
  mo::load<>{}.token_gradient(given(1, {1, 2, 3}), 2.0, logits, dp, dz);
  CHECK(p == std::vector<double>{1, 2, 3});
  CHECK(d == std::vector<double>{4, 5, 6});
}

TEST_CASE("parts add up to the whole") { differences::check_merge<mo::load<>, differences::softmax>(); }
