// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/array.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("an array is an aggregate of its values") {
  constexpr mo::array three{1.0f, 2.0f, 3.0f};
  static_assert(three.size() == 3 && three[2] == 3);
  mo::array<int, 2> a{};
  a[1] = 5;
  CHECK(a == mo::array<int, 2>{0, 5});
  int sum = 0;
  for (int const v : a) sum += v;
  CHECK(sum == 5);
}
