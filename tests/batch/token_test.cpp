// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/token.hpp>

#include <moiety/batch/batch.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mo = moiety;

TEST_CASE("a token knows its place in the call and in the global batch, step and layer, its id and its experts") {
  std::vector<std::int32_t> const ids{7, 8, 9}, experts{1, 2, 3, 4, 5, 6};
  mo::batch const about{.ids = ids, .experts = experts, .first_row = 1'000'000'000'000, .step = 17, .layer = 5};
  mo::token_view const token = about.tokens(2)[2];
  CHECK(token.index == 2);
  CHECK(token.logical == 1'000'000'000'002);
  CHECK(token.step == 17);
  CHECK(token.layer == 5);
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

TEST_CASE("a moment is the step of the first layer, and no other pair of step and layer has it") {
  std::vector<std::int64_t> all;
  for (std::int64_t const step : {0, 1, 17, 1'000'000'000})
    for (std::int64_t const layer : {0, 1, 2, 127, 100'000}) {
      mo::batch const about{.step = step, .layer = layer};
      all.push_back(about.tokens(2).moment());
      CHECK(about.tokens(2)[3].moment() == all.back());
      CHECK((all.back() == step) == (layer == 0));
    }
  std::sort(all.begin(), all.end());
  CHECK(std::adjacent_find(all.begin(), all.end()) == all.end());
}
