// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/token.hpp>

#include <moiety/batch/batch.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

TEST_CASE("a token knows its place in the call and in the global batch, the step, its id and its experts") {
  std::vector<std::int32_t> const ids{7, 8, 9}, experts{1, 2, 3, 4, 5, 6};
  mo::batch const about{.ids = ids, .experts = experts, .first_row = 1'000'000'000'000, .step = 17};
  mo::token_view const token = about.tokens(2)[2];
  CHECK(token.index == 2);
  CHECK(token.logical == 1'000'000'000'002);
  CHECK(token.step == 17);
  CHECK(token.id == 9);
  CHECK(token.experts[0] == 5);
  CHECK(token.experts[1] == 6);
}

TEST_CASE("of what a batch does not bring a token has nothing") {
  mo::token_view const token = mo::batch{}.tokens(2)[2];
  CHECK(token.index == 2);
  CHECK(token.logical == 2);
  CHECK(token.step == 0);
  CHECK(token.id == -1);
  CHECK(token.experts == nullptr);
  CHECK(mo::token_view{}.id == -1);
}
