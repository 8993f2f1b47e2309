// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/unit_statistics.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>

namespace mo = moiety;

TEST_CASE("units add up, expected loads where the one that is added has them") {
  std::array<mo::unit_statistics, 2> units{};
  std::array<mo::expert_statistics, 4> experts{};
  std::array<mo::exact_sum, 4> loads{};
  mo::statistics_view const a{&units[0], {&experts[0], 2}, {}, {}, {&loads[0], 2}};
  mo::statistics_view const b{&units[1], {&experts[2], 2}, {}, {}, {&loads[2], 2}};
  mo::statistics_view const plain{&units[1], {&experts[2], 2}};
  b.unit->tokens = 3, b.unit->slots = 2;
  b.experts[1].count = 4, b.experts[1].dropped = 1, b.experts[0].reached = 3;
  b.experts[1].probability.add(0.5), b.unit->lse_squared.add(2), b.expected_loads[1].add(0.25);
  a.add(b);
  a.add(plain);
  CHECK(a.tokens() == 6);
  CHECK(a.slots() == 2);
  CHECK(a.experts[1].count == 8);
  CHECK(a.experts[1].dropped == 2);
  CHECK(a.experts[0].reached == 6);
  CHECK(a.experts[1].probability.value() == 1);
  CHECK(a.unit->lse_squared.value() == 4);
  CHECK(a.expected_loads[1].value() == 0.25);
  CHECK(a.expected_loads[0].value() == 0);
}

TEST_CASE("counts that are not there are those of no token") {
  CHECK(mo::counts_view{}.tokens() == 0);
  CHECK(mo::counts_view{}[3] == 0);
  std::array<std::int64_t, 3> const values{5, 6, 7};
  CHECK(mo::counts_view{values.data()}.tokens() == 5);
  CHECK(mo::counts_view{values.data()}[1] == 7);
}
