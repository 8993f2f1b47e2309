// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/precomputed.hpp>

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
using replay = mo::router<mo::softmax, mo::precomputed<2>, mo::renormalised>;
using original = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;

}  // namespace

static_assert(mo::selection<mo::precomputed<2>> && mo::selects_by_token<mo::precomputed<2>>);

TEST_CASE("the experts of a token are those that the batch brings, one that is there twice only once") {
  std::vector<std::int32_t> const experts{3, 1}, twice{2, 2};
  CHECK(rows::called(mo::precomputed<2>{}, {0, 0, 0, 0}, {.experts = experts.data()}) == calls{{0, 3}, {1, 1}});
  CHECK(rows::called(mo::precomputed<2>{}, {0, 0, 0, 0}, {.experts = twice.data()}) == calls{{0, 2}});
  CHECK(rows::called(mo::precomputed<2>{}, {0, 0, 0, 0}).empty());
}

TEST_CASE("a replayed routing has the experts and the weights of the original, to the last bit") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(70, 9, 1), other = rows::drawn<float>(70, 9, 2);
  mo::routing const first = original{}.forward(ctx, z);
  std::vector<std::int32_t> const experts(first.ids, first.ids + 140);
  mo::routing const again = replay{}.forward(ctx, z, {.experts = experts});
  for (std::int64_t s = 0; s < 140; ++s) {
    CHECK(again.ids[s] == first.ids[s]);
    CHECK(again.weights[s] == first.weights[s]);
  }
  mo::routing const elsewhere = replay{}.forward(ctx, other, {.experts = experts});  // weights are those of this call
  for (std::int64_t t = 0; t < 70; ++t) {
    CHECK(elsewhere.expert(t, 0) == first.expert(t, 0));
    float const difference = other(t, first.expert(t, 0)) - other(t, first.expert(t, 1));
    CHECK(elsewhere.weight(t, 0) == doctest::Approx(mo::logistic(difference)));
  }
}

TEST_CASE("experts that are not distinct, or not in range, are data errors that name the token") {
  mo::context<> ctx;
  mo::matrix<float> const z(3, 4);
  for (auto const& [a, b] : std::vector<std::pair<std::int32_t, std::int32_t>>{
           {2, 2}, {0, 4}, {-1, 0}, {0, -2147483647 - 1}, {2147483647, 1}}) {
    std::vector<std::int32_t> const experts{0, 1, a, b, 2, 3};
    CHECK_THROWS_WITH_AS(replay{}.forward(ctx, z, {.experts = experts}),
                         "the router gave token 1 fewer than 2 distinct experts in 0 … 3.", mo::data_error);
    std::vector<std::uint8_t> const mask{1, 0, 1};
    CHECK_NOTHROW(replay{}.forward(ctx, z, {.mask = mask, .experts = experts}));
  }
}

TEST_CASE("missing experts, and a number of them that does not fit, are data errors with both sizes") {
  mo::context<> ctx;
  mo::matrix<float> const z(3, 4);
  CHECK_THROWS_WITH_AS(replay{}.forward(ctx, z),
                       "precomputed needs 3 × 2 expert ids in mo::batch{.experts}, but was given 0.", mo::data_error);
  std::vector<std::int32_t> experts{0, 1, 2};
  CHECK_THROWS_WITH_AS(replay{}.forward(ctx, z, {.experts = experts}),
                       "precomputed needs 3 × 2 expert ids in mo::batch{.experts}, but was given 3.", mo::data_error);
  experts.resize(7);
  CHECK_THROWS_WITH_AS(
      replay{}.forward(ctx, z, {.experts = experts}),
      "mo::batch{.experts} has 7 entries for a call of 3 tokens, which is not the same number for each.",
      mo::data_error);
  CHECK(replay{}.forward(ctx, mo::matrix<float>(0, 4)).tokens == 0);
}
