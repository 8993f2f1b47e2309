// SPDX-License-Identifier: Apache-2.0
// The parts of the host body; the whole is tested in kernels/drop_test.cpp.
#include <moiety/kernels/host/drop.hpp>

#include <moiety/capacity/capacity.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <set>
#include <vector>

namespace mo = moiety;

TEST_CASE("the tokens of an expert beyond its capacity become −1 − token, and none where all fit") {
  std::vector<std::int32_t> ids{1, 1, 1, 1, 1};
  std::vector<float> weights{.5f, .25f, .75f, .25f, .5f};
  std::vector<mo::token_state> states(5);
  mo::routing_view<float> const routes{5, 2, 1, ids.data(), weights.data(), states.data()};
  std::vector<std::int32_t> tokens{0, 1, 2, 3, 4};
  auto const part = [&](std::int64_t kept) {
    mo::kernels::detail::part_tokens<mo::drop::lowest_weight>(routes, {}, 1, kept, tokens.data(), tokens.data() + 5);
    return std::multiset<std::int32_t>(tokens.begin(), tokens.end());
  };
  CHECK(part(5) == std::multiset<std::int32_t>{0, 1, 2, 3, 4});
  CHECK(part(4) == std::multiset<std::int32_t>{-4, 0, 1, 2, 4});  // of tokens 1 and 3 the later
  CHECK(mo::kernels::detail::slot_of(routes, 3, 1) == 0);
}
