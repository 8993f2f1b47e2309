// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/statistics.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

mo::routing_statistics made(std::int64_t tokens, std::int64_t count, double probability) {
  mo::routing_statistics s(2, 1);
  mo::statistics_view const view = s.view();
  view.unit->tokens = tokens;
  view.unit->lse_squared.add(probability);
  view.experts[1].count = count;
  view.experts[1].probability.add(probability);
  return s;
}

}  // namespace

TEST_CASE("statistics add up exactly") {
  mo::routing_statistics a = made(3, 2, 0.1);
  a += made(std::int64_t{1} << 40, std::int64_t{1} << 33, 0.2);
  CHECK(a.tokens() == (std::int64_t{1} << 40) + 3);
  CHECK(a.counts() == std::vector<std::int64_t>{0, (std::int64_t{1} << 33) + 2});
  mo::exact_sum expected;
  expected.add(0.2);
  expected.add(0.1);
  CHECK(a.probabilities()[1] == expected.value());
  CHECK(a.lse_squared() == expected.value());
  mo::routing_statistics b = made(std::int64_t{1} << 40, std::int64_t{1} << 33, 0.2);
  b += made(3, 2, 0.1);
  CHECK(a == b);
}

TEST_CASE("empty statistics take the first that are added; different ones do not mix") {
  mo::routing_statistics none;
  none += made(3, 2, 0.1);
  CHECK(none == made(3, 2, 0.1));
  CHECK_THROWS_WITH_AS(none += mo::routing_statistics(3, 1),
                       "statistics of 1 of 3 experts cannot be added to those of 1 of 2.", mo::data_error);
  CHECK_THROWS_AS(none += mo::routing_statistics(2, 2), mo::data_error);
}

TEST_CASE("a copy of a view is a value of its own") {
  mo::routing_statistics a = made(3, 2, 0.1);
  mo::routing_statistics const copy(a.view());
  a += a;
  CHECK(copy == made(3, 2, 0.1));
  CHECK(a.tokens() == 6);
  CHECK(a.experts() == 2);
}
