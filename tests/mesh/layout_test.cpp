// SPDX-License-Identifier: Apache-2.0
#include <moiety/mesh/layout.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("the world is data x tensor x context x pipeline; expert axes are cut out of it") {
  CHECK(mo::layout{}.world() == 1);
  CHECK(mo::layout{.data = 2, .tensor = 3, .context = 5, .pipeline = 7, .expert = 2, .expert_tensor = 3}.world() ==
        210);
  static_assert(mo::layout{.data = 4} == mo::layout{.data = 4});
  static_assert(mo::layout{.data = 4} != mo::layout{.data = 4, .expert = 4});
}
