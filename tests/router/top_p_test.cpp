// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/top_p.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <ratio>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using calls = std::vector<std::pair<int, int>>;

/// Of the largest scores, as many as reach the mass together.
template <int Cap> calls expected(std::vector<float> const& scores, float mass) {
  calls chosen;
  std::vector<bool> used(scores.size(), false);
  for (float total = 0; static_cast<int>(chosen.size()) < Cap && (chosen.empty() || total < mass);) {
    std::size_t best = scores.size();
    for (std::size_t e = 0; e < scores.size(); ++e)
      if (!used[e] && (best == scores.size() || scores[e] > scores[best])) best = e;
    used[best] = true;
    total += scores[best];
    chosen.emplace_back(static_cast<int>(chosen.size()), static_cast<int>(best));
  }
  return chosen;
}

}  // namespace

static_assert(mo::selection<mo::top_p<4>> && !mo::fills_every_slot<mo::top_p<4>>);

TEST_CASE("the fewest experts that reach the mass, at least one, at most the cap") {
  std::vector<float> const p{0.125f, 0.5f, 0.25f, 0.125f};
  CHECK(rows::called(mo::top_p<4, std::ratio<1, 2>>{}, p) == calls{{0, 1}});  // reached exactly
  CHECK(rows::called(mo::top_p<4, std::ratio<51, 100>>{}, p) == calls{{0, 1}, {1, 2}});
  CHECK(rows::called(mo::top_p<4, std::ratio<7, 8>>{}, p) == calls{{0, 1}, {1, 2}, {2, 0}});
  CHECK(rows::called(mo::top_p<4, std::ratio<1>>{}, p) == calls{{0, 1}, {1, 2}, {2, 0}, {3, 3}});
  CHECK(rows::called(mo::top_p<2, std::ratio<1>>{}, p) == calls{{0, 1}, {1, 2}});
  CHECK(rows::called(mo::top_p<4, std::ratio<1, 1000>>{}, p) == calls{{0, 1}});
  CHECK(rows::called(mo::top_p<4>{.mass = 0}, p) == calls{{0, 1}});  // at run time too
  CHECK(rows::called(mo::top_p<1>{}, {1.0f}) == calls{{0, 0}});
}

TEST_CASE("the same as a naive choice over drawn rows, with ties") {
  for (std::int64_t const experts : {3, 8, 40, 160}) {
    auto const drawn = rows::drawn<float>(60, experts, 2, true);
    for (std::int64_t t = 0; t < 60; ++t) {
      std::vector<float> p = rows::row(drawn, t);
      mo::span_row<float> row(p.data(), experts);
      mo::softmax{}.forward(row);
      CHECK(rows::called(mo::top_p<3, std::ratio<2, 5>>{}, p) == expected<3>(p, 0.4f));
      CHECK(rows::called(mo::top_p<3>{.mass = 0.75f}, p) == expected<3>(p, 0.75f));
    }
  }
}

TEST_CASE("where fewer scores than the cap are numbers the rest of the slots stays empty") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(rows::called(mo::top_p<3, std::ratio<1>>{}, {nan, 0.25f, nan}) == calls{{0, 1}});
}

TEST_CASE("slots that are not needed have no expert and weight 0, and the others sum to their scores") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(200, 8, 3);
  using router = mo::router<mo::softmax, mo::top_p<4, std::ratio<1, 2>>, mo::renormalised, mo::scale<std::ratio<2>>>;
  mo::routing const r = router{}.forward(ctx, z);
  CHECK_NOTHROW(r.check());
  std::vector<int> of_size(5);
  for (std::int64_t t = 0; t < 200; ++t) {
    float total = 0;
    int size = 0;
    for (std::int64_t j = 0; j < 4; ++j) {
      if (r.expert(t, j) == mo::no_expert) CHECK(r.weight(t, j) == 0);
      if (r.has_row(t, j)) ++size, total += r.weight(t, j);
      CHECK(r.has_row(t, j) == (j < size));  // no gap
    }
    CHECK(total == doctest::Approx(2));
    ++of_size[static_cast<std::size_t>(size)];
  }
  CHECK(of_size[0] == 0);
  for (std::size_t const size : {1u, 2u, 3u}) CHECK(of_size[size] > 0);
}
