// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/array_view.hpp>

#include <doctest/doctest.h>

#include <array>
#include <span>

namespace mo = moiety;

TEST_CASE("a view refers to an array, and is a span where one is asked for") {
  std::array<int, 3> values{1, 2, 3};
  mo::array_view<int> const view = std::span<int>(values);
  CHECK(view.data() == values.data());
  CHECK(view.size() == 3);
  view[1] = 5;
  int sum = 0;
  for (int const v : view) sum += v;
  CHECK(sum == 9);
  std::span<int> const back = view;
  CHECK(back.data() == values.data());
  CHECK(back.size() == 3);
  CHECK(mo::array_view<int>().size() == 0);
}
