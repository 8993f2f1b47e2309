// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/groups.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

namespace mo = moiety;

namespace {

/// The experts that are left, from the definition.
std::vector<bool> kept_by(std::vector<float> const& scores, std::size_t count, std::size_t kept, std::size_t n) {
  std::size_t const size = scores.size() / count;
  std::vector<float> of_group;
  for (std::size_t g = 0; g < count; ++g) {
    std::vector<float> members(scores.begin() + static_cast<std::ptrdiff_t>(g * size),
                               scores.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::sort(members.begin(), members.end(), std::greater<>{});
    float sum = members[0];
    for (std::size_t i = 1; i < std::min(n, size); ++i) sum += members[i];
    of_group.push_back(sum);
  }
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return of_group[a] > of_group[b]; });
  std::vector<bool> left(scores.size(), false);
  for (std::size_t i = 0; i < kept; ++i)
    for (std::size_t e = order[i] * size; e < (order[i] + 1) * size; ++e) left[e] = true;
  return left;
}

template <int Count, int Kept, int N> void compare(std::int64_t experts) {
  CAPTURE(experts);
  CAPTURE(Count);
  CAPTURE(Kept);
  CAPTURE(N);
  auto drawn = rows::drawn<float>(30, experts, Count * 100 + Kept * 10 + N, true);
  for (std::int64_t r = 0; r < 30; ++r) {
    for (std::int64_t e = 0; r % 2 == 0 && e < experts; ++e) drawn(r, e) -= 5;  // all below zero
    std::vector<float> const before = rows::row(drawn, r);
    std::vector<bool> const left = kept_by(before, Count, Kept, N);
    mo::span_row<float> row(drawn.row(r), experts);
    mo::groups<Count, Kept, mo::group_score::sum_of_largest<N>>{}.forward(row);
    bool same = true;
    for (std::size_t e = 0; e < left.size(); ++e)
      same = same && (left[e] ? row[static_cast<int>(e)] == before[e] : std::isnan(row[static_cast<int>(e)]));
    CHECK(same);
  }
}

/// A user's own: a group is worth its last expert.
struct of_last {
  template <mo::score_row Row> static auto of(Row const& row, int first, int last) {
    return row.template sum_of_largest<1>(last - 1, last + 0 * first);
  }
};

}  // namespace

static_assert(mo::group_rule<mo::groups<8, 4>> && !mo::group_rule<mo::top_k<2>> && !mo::group_rule<int>);

TEST_CASE("the kept groups are those of a naive choice, with ties, negative scores, and any sizes") {
  for (std::int64_t const experts : {8, 16, 40, 64, 256}) {
    compare<8, 3, 1>(experts);
    compare<8, 4, 2>(experts);
    compare<8, 1, 3>(experts);
    compare<4, 2, 2>(experts);
    compare<2, 1, 2>(experts);
    compare<1, 1, 2>(experts);
    compare<8, 8, 2>(experts);
  }
  compare<3, 2, 2>(9);
  compare<6, 5, 4>(384);
  compare<64, 7, 2>(384);
  compare<64, 63, 2>(64);  // groups of one expert
}

TEST_CASE("of equal groups the lower is kept") {
  std::array<float, 6> scores{1, 2, 2, 1, 0, 3};
  mo::span_row<float> row(scores.data(), 6);
  mo::groups<3, 2>{}.forward(row);
  CHECK(scores[1] == 2);
  CHECK(scores[3] == 1);
  CHECK(std::isnan(scores[4]));
  CHECK(std::isnan(scores[5]));
}

TEST_CASE("an expert outside the kept groups is removed, so it loses even to a score below zero") {
  mo::context<> ctx;
  mo::matrix<float> const z = rows::drawn<float>(40, 8, 9);
  std::vector<float> const bias(8, -3.0f);  // every biased score is below zero
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::groups<4, 2>, mo::top_k<4>>;
  mo::routing const r = router{}.with_bias(bias.data()).forward(ctx, z);
  for (std::int64_t t = 0; t < 40; ++t) {
    std::vector<float> seen = rows::row(z, t);
    for (float& s : seen) s = mo::logistic(s) - 3;
    std::vector<bool> const left = kept_by(seen, 4, 2, 2);
    for (std::int64_t j = 0; j < 4; ++j) {
      CHECK(left[static_cast<std::size_t>(r.expert(t, j))]);
      CHECK(r.weight(t, j) == mo::logistic(z(t, r.expert(t, j))));
    }
  }
}

TEST_CASE("the bias counts in the choice of groups") {
  mo::context<> ctx;
  mo::matrix<float> const z(1, 4);
  std::array<float, 4> const bias{0, 0, 0.1f, 0};
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::groups<2, 1, mo::group_score::largest>, mo::top_k<2>>;
  CHECK(router{}.forward(ctx, z).expert(0, 0) == 0);
  CHECK(router{}.with_bias(bias.data()).forward(ctx, z).expert(0, 0) == 2);
  CHECK(router{}.with_bias(bias.data()).forward(ctx, z).expert(0, 1) == 3);
}

TEST_CASE("a group may be scored by a rule of one's own") {
  std::array<float, 4> scores{9, 1, 0, 2};
  mo::span_row<float> row(scores.data(), 4);
  mo::groups<2, 1, of_last>{}.forward(row);
  CHECK(std::isnan(scores[0]));
  CHECK(scores[3] == 2);
}

TEST_CASE("groups that do not fit the experts of a call are refused") {
  mo::context<> ctx;
  CHECK_THROWS_WITH_AS(
      (mo::router<mo::softmax, mo::groups<4, 2>, mo::top_k<2>>{}.forward(ctx, mo::matrix<float>(3, 6))),
      "4 groups do not divide 6 experts.", mo::config_error);
  CHECK_THROWS_WITH_AS(
      (mo::router<mo::softmax, mo::groups<4, 1>, mo::top_k<3>>{}.forward(ctx, mo::matrix<float>(3, 8))),
      "a router of 3 slots cannot choose from 1 groups of 2 experts.", mo::config_error);
}
