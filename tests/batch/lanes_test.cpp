// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/lanes.hpp>

#include <doctest/doctest.h>

#include <string>

namespace mo = moiety;

TEST_CASE("lanes are folded in halves") {
  std::string const lanes[8] = {"a", "b", "c", "d", "e", "f", "g", "h"};
  auto const join = [](std::string const& a, std::string const& b) { return "(" + a + b + ")"; };
  CHECK(mo::detail::halved(lanes, join) == "(((ae)(cg))((bf)(dh)))");
}

TEST_CASE("one lane is itself") {
  mo::detail::array_of<int, 1> const lane{7};
  CHECK(mo::detail::halved(lane, [](int, int) { return 0; }) == 7);
}
