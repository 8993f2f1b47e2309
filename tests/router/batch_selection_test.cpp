// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/batch_selection.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

/// A user's own: all tokens share the K experts whose scores are largest over the batch.
template <int K> struct shared_choice {
  static constexpr int count = K;
  static constexpr double average = K;
  static constexpr std::int64_t rows(std::int64_t tokens, std::int64_t) { return tokens * K; }
  template <class S> static constexpr std::int64_t workspace_bytes(std::int64_t, std::int64_t experts) {
    return experts * static_cast<std::int64_t>(sizeof(S));
  }
  template <class S> void select(auto&, mo::batch_of_scores<S> const& of) const {
    S* const sums = reinterpret_cast<S*>(of.workspace);
    std::fill_n(sums, of.scores.cols(), S{0});
    for (std::int64_t t = 0; t < of.scores.rows(); ++t)
      for (std::int64_t e = 0; of.takes_part(t) && e < of.scores.cols(); ++e) sums[e] += of.scores(t, e);
    mo::span_row<S>(sums, of.scores.cols()).template largest<K>([&](int slot, int e) {
      for (std::int64_t t = 0; t < of.scores.rows(); ++t)
        if (of.takes_part(t)) of.ids[t * K + slot] = e;
    });
  }
};
struct without_rows {
  static constexpr int count = 1;
  static constexpr double average = 1;
};

}  // namespace

static_assert(mo::batch_selection<shared_choice<2>> && !mo::batch_selection<without_rows>);
static_assert(!mo::batch_selection<mo::top_k<2>> && !mo::selection<mo::expert_choice<2>>);
static_assert(!mo::batch_selection<int>);
static_assert(mo::selects_on<shared_choice<2>, mo::host> && !mo::selects_on<shared_choice<2>, mo::cuda>);
static_assert(mo::selects_on<mo::expert_choice<2>, mo::host> && mo::selects_on<mo::expert_choice<2>, mo::cuda>);

TEST_CASE("tokens that are routed or sanitised take part, padding and tokens without a logit do not") {
  using enum mo::token_state;
  std::vector<mo::token_state> const states{routed, masked, sanitised, unroutable, routed};
  mo::matrix<float> scores(5, 2);
  mo::batch_of_scores<float> const of{scores, states.data(), {}, 2, nullptr, nullptr};
  CHECK(of.participants() == 3);
  CHECK(of.takes_part(2));
  CHECK_FALSE(of.takes_part(1));
  CHECK_FALSE(of.takes_part(3));
}

TEST_CASE("a batch selection of one's own routes, with the bias in what it sees and not in the weights") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(30, 5, 1);
  for (std::int64_t t = 0; t < 30; ++t) z(t, 3) += 3, z(t, 1) += 2;
  z(29, 0) = 1e6f;
  std::vector<std::uint8_t> mask(30, 1);
  mask[29] = 0;  // or it alone would decide
  std::vector<float> const bias{0, 0, 0, 0, 9};
  using router = mo::router<mo::softmax, shared_choice<2>, mo::selection_bias, mo::renormalised>;
  mo::routing const plain = router{}.forward(ctx, z, {.mask = mask});
  mo::routing const biased = router{}.with_bias(bias.data()).forward(ctx, z, {.mask = mask});
  for (std::int64_t t = 0; t < 29; ++t) {
    CHECK(plain.expert(t, 0) == 3);
    CHECK(plain.expert(t, 1) == 1);
    CHECK(biased.expert(t, 0) == 4);
    CHECK(biased.expert(t, 1) == 3);
    CHECK(plain.weight(t, 0) == doctest::Approx(mo::logistic(z(t, 3) - z(t, 1))));
    CHECK(biased.weight(t, 0) == doctest::Approx(mo::logistic(z(t, 4) - z(t, 3))));
  }
  CHECK(plain.state(29) == mo::token_state::masked);
  CHECK_FALSE(plain.has_row(29, 0));
  CHECK(plain.weight(29, 0) == 0);
}

TEST_CASE("a call without a token, and one of padding alone") {
  mo::context<> ctx;
  std::vector<std::uint8_t> const mask{0, 0};
  mo::matrix<float> const z(2, 4);
  auto const check = [&]<class Selection>(Selection const&) {
    mo::router<mo::softmax, Selection> const router;
    CHECK(router.forward(ctx, mo::matrix<float>(0, 4)).tokens == 0);
    mo::routing const r = router.forward(ctx, z, {.mask = mask});
    CHECK(r.count_states() == mo::token_counts{0, 0, 0, 2});
    for (std::int64_t s = 0; s < 2 * r.slots; ++s) CHECK(r.weights[s] == 0);
  };
  check(mo::expert_choice<2>{});
  check(mo::sinkhorn<2>{});
  check(mo::token_rounding<2, 4>{});
}
