// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/hash.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using calls = std::vector<std::pair<int, int>>;

// Five token ids, two experts of four each; the last two lists are unsound.
std::vector<std::int32_t> const table{3, 0, 1, 2, 2, 1, 2, 2, 0, 4};
mo::hash<2> const rule{.table = table.data(), .entries = 5};
using router = mo::router<mo::softmax, mo::hash<2>, mo::renormalised>;

}  // namespace

static_assert(mo::selection<mo::hash<2>> && mo::selects_by_token<mo::hash<2>>);

TEST_CASE("the experts of a token are those of its id") {
  CHECK(rows::called(rule, {0, 0, 0, 0}, {.id = 0}) == calls{{0, 3}, {1, 0}});
  CHECK(rows::called(rule, {9, 8, 7, 6}, {.id = 2}) == calls{{0, 2}, {1, 1}});
  CHECK(rows::called(rule, {0, 0, 0, 0}, {.id = 3}) == calls{{0, 2}});  // named twice: once
}

TEST_CASE("an id outside the table chooses nothing") {
  for (std::int32_t const id : {-1, 5, 2147483647, -2147483647 - 1})
    CHECK(rows::called(rule, {0, 0, 0, 0}, {.id = id}).empty());
  CHECK(rows::called(mo::hash<2>{}, {0, 0, 0, 0}, {.id = 0}).empty());
}

TEST_CASE("weights are those of the scores at the experts of the table") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(4, 4, 1);
  std::vector<std::int32_t> const ids{2, 0, 1, 2};
  mo::routing const r = router{rule}.forward(ctx, z, {.ids = ids});
  for (std::int64_t t = 0; t < 4; ++t) {
    std::int32_t const* const listed = table.data() + 2 * ids[static_cast<std::size_t>(t)];
    for (std::int64_t j = 0; j < 2; ++j) CHECK(r.expert(t, j) == listed[j]);
    CHECK(r.weight(t, 0) == doctest::Approx(mo::logistic(z(t, listed[0]) - z(t, listed[1]))));
    CHECK(r.weight(t, 0) + r.weight(t, 1) == doctest::Approx(1));
  }
}

TEST_CASE("a call without ids, an id outside the table, and an unsound list are data errors") {
  mo::context<> ctx;
  mo::matrix<float> const z(3, 4);
  CHECK_THROWS_WITH_AS(router{rule}.forward(ctx, z), "hash needs token ids in mo::batch{.ids}.", mo::data_error);
  std::vector<std::int32_t> ids{0, 1};
  CHECK_THROWS_WITH_AS(router{rule}.forward(ctx, z, {.ids = ids}),
                       "mo::batch{.ids} has 2 entries for a call of 3 tokens.", mo::data_error);
  for (std::int32_t const id : {-1, 5, 3, 4}) {
    ids = {0, id, 1};
    CHECK_THROWS_WITH_AS(router{rule}.forward(ctx, z, {.ids = ids}),
                         "the router gave token 1 fewer than 2 distinct experts in 0 … 3.", mo::data_error);
    std::vector<std::uint8_t> const mask{1, 0, 1};  // padding may have any id
    CHECK_NOTHROW(router{rule}.forward(ctx, z, {.mask = mask, .ids = ids}));
  }
  CHECK(router{rule}.forward(ctx, mo::matrix<float>(0, 4)).tokens == 0);
}
