// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/expert_choice.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ratio>
#include <set>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(),
                not_a_number = std::numeric_limits<float>::quiet_NaN();

using choices = std::set<std::pair<std::int64_t, int>>;  // token, expert

/// The C best tokens of each expert, by a full sort.
choices expected(mo::matrix_view<float const> scores, std::vector<std::uint8_t> const& mask, std::int64_t capacity) {
  choices all;
  for (int e = 0; e < scores.cols(); ++e) {
    std::vector<std::int64_t> order;
    for (std::int64_t t = 0; t < scores.rows(); ++t)
      if ((mask.empty() || mask[static_cast<std::size_t>(t)] != 0) && scores(t, e) > -infinity) order.push_back(t);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores(a, e) > scores(b, e); });
    for (std::size_t i = 0; i < order.size() && static_cast<std::int64_t>(i) < capacity; ++i) all.emplace(order[i], e);
  }
  return all;
}

choices chosen(mo::routing_view<float> const& r) {
  choices all;
  for (std::int64_t t = 0; t < r.tokens; ++t)
    for (std::int64_t j = 0; j < r.slots; ++j)
      if (r.has_row(t, j)) all.emplace(t, r.expert(t, j));
  return all;
}

template <class Selection, class... Others> using of_logits = mo::router<mo::raw_logits, Selection, Others...>;

template <class Selection>
void compare(mo::matrix<float> const& z, std::vector<std::uint8_t> const& mask, int threads) {
  mo::context<> ctx{mo::host{.threads = threads}};
  mo::routing const r = of_logits<Selection>{}.forward(ctx, z, {.mask = mask});
  CHECK_NOTHROW(r.check());
  std::int64_t const n = mask.empty() ? z.rows() : std::count(mask.begin(), mask.end(), 1);
  std::int64_t const capacity = Selection::capacity(n, z.cols());
  CHECK(chosen(r) == expected(z, mask, capacity));
  CHECK(static_cast<std::int64_t>(chosen(r).size()) == capacity * z.cols());
  CHECK(capacity * z.cols() <= Selection::rows(z.rows(), z.cols()));
  for (std::int64_t t = 0; t < r.tokens; ++t)  // ascending, without gaps, empty slots of weight 0
    for (std::int64_t j = 0; r.dispatched(t) && j < r.slots; ++j) {
      CHECK(r.weight(t, j) == (r.has_row(t, j) ? z(t, r.expert(t, j)) : 0.0f));
      if (j > 0 && r.has_row(t, j)) CHECK(r.expert(t, j - 1) < r.expert(t, j));
      if (j > 0 && r.has_row(t, j)) CHECK(r.has_row(t, j - 1));
    }
}

template <class Selection> void compare_sizes() {
  for (std::int64_t const tokens : {0, 1, 2, 3, 37, 200})
    for (std::int64_t const experts : {1, 3, 8, 40}) {
      CAPTURE(tokens);
      CAPTURE(experts);
      auto const z = rows::drawn<float>(tokens, experts, 7, true);
      compare<Selection>(z, {}, 1);
      std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
      for (std::size_t t = 0; t < mask.size(); t += 3) mask[t] = 0;
      compare<Selection>(z, mask, 3);
    }
}

}  // namespace

TEST_CASE("the capacity is the rounded-up share of an expert, and at most all tokens") {
  using two = mo::expert_choice<2>;
  CHECK(two::capacity(16, 8) == 4);
  CHECK(two::capacity(17, 8) == 5);  // 4.25
  CHECK(two::capacity(1, 8) == 1);
  CHECK(two::capacity(0, 8) == 0);
  CHECK(two::capacity(10, 1) == 10);
  CHECK(mo::expert_choice<2, std::ratio<5, 4>>::capacity(16, 8) == 5);
  CHECK(mo::expert_choice<1, std::ratio<1, 2>>::capacity(16, 8) == 1);
  CHECK(mo::expert_choice<8, std::ratio<4>>::capacity(16, 8) == 16);
  CHECK(two::rows(17, 8) == 40);
}

TEST_CASE("every expert takes its best tokens, as a full sort finds them, of equal scores the lower token") {
  compare_sizes<mo::expert_choice<1>>();
  compare_sizes<mo::expert_choice<2, std::ratio<5, 4>>>();
  compare_sizes<mo::expert_choice<3, std::ratio<9>>>();
}

TEST_CASE("equal scores everywhere: the first tokens go to all experts, the others to none") {
  mo::context<> ctx;
  mo::routing const r = mo::router<mo::softmax, mo::expert_choice<2>>{}.forward(ctx, mo::matrix<float>(8, 4));
  for (std::int64_t t = 0; t < 8; ++t)
    for (std::int64_t j = 0; j < 4; ++j) CHECK(r.expert(t, j) == (t < 4 ? j : mo::no_expert));
}

TEST_CASE("an expert passes over tokens for which it has no score above minus infinity") {
  mo::context<> ctx;
  mo::matrix<float> z(6, 2);
  for (std::int64_t t = 0; t < 6; ++t)
    z(t, 0) = static_cast<float>(t), z(t, 1) = t < 4 ? not_a_number : static_cast<float>(-t);
  z(5, 0) = -infinity;
  mo::routing const r = of_logits<mo::expert_choice<1>>{}.forward(ctx, z, mo::non_finite::sanitise);
  CHECK(chosen(r) == choices{{2, 0}, {3, 0}, {4, 0}, {4, 1}, {5, 1}});
  for (std::int64_t s = 0; s < 12; ++s) CHECK(std::isfinite(r.weights[s]));
  CHECK(r.count_states() == mo::token_counts{1, 5, 0, 0});
}

TEST_CASE("a token without a finite logit is not among those that capacity is counted from") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(9, 3, 2);
  for (std::int64_t e = 0; e < 3; ++e) z(4, e) = not_a_number;
  mo::routing const r = of_logits<mo::expert_choice<1>>{}.forward(ctx, z, mo::non_finite::sanitise);
  CHECK(chosen(r).size() == 9);  // ⌈8 / 3⌉ each
  CHECK_FALSE(r.dispatched(4));
  CHECK_THROWS_WITH_AS(of_logits<mo::expert_choice<1>>{}.forward(ctx, z),
                       "the router logits of token 4 are not all finite.", mo::data_error);
}

TEST_CASE("bias and groups are in what an expert sees") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(40, 4, 8);
  std::vector<float> const bias{0.5f, -0.25f, 0, 1};
  using router = of_logits<mo::expert_choice<1, std::ratio<2>>, mo::selection_bias, mo::groups<2, 1>>;
  mo::routing const r = router{}.with_bias(bias.data()).forward(ctx, z);
  mo::matrix<float> seen(40, 4);
  for (std::int64_t t = 0; t < 40; ++t) {
    for (std::int64_t e = 0; e < 4; ++e) seen(t, e) = z(t, e) + bias[static_cast<std::size_t>(e)];
    std::int64_t const lost = seen(t, 2) + seen(t, 3) > seen(t, 0) + seen(t, 1) ? 0 : 2;
    seen(t, lost) = seen(t, lost + 1) = -infinity;
  }
  CHECK(chosen(r) == expected(seen, {}, 20));
  for (auto const& [t, e] : chosen(r)) CHECK((seen(t, e) > -infinity));
}
