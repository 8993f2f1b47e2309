// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/rows.hpp>

#include <moiety/router/forced.hpp>
#include <moiety/router/hash.hpp>
#include <moiety/router/sinkhorn.hpp>
#include <moiety/router/token_rounding.hpp>
#include <moiety/router/top_p.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

template <std::size_t N> mo::span_row<double> row(std::array<double, N>& of) {
  return {of.data(), static_cast<std::int64_t>(N)};
}

using plain = mo::router_rows<mo::sigmoid, mo::top_k<2>>;
using biased = mo::router_rows<mo::sigmoid, mo::top_k<2>, mo::selection_bias>;
using spread = mo::router_rows<mo::softmax, mo::top_p<3, std::ratio<1, 2>>, mo::softmax_of_selected>;
using by_expert = mo::router_rows<mo::raw_logits, mo::token_rounding<2, 4>>;
using planned = mo::router_rows<mo::softmax, mo::sinkhorn<2>>;

}  // namespace

static_assert(!plain::changes_scores && biased::changes_scores);
static_assert(mo::router_rows<mo::softmax, mo::forced<2>>::changes_scores);
static_assert(!mo::router_rows<mo::softmax, mo::hash<2>>::changes_scores);
static_assert(plain::needs_every_slot && !spread::needs_every_slot && !planned::needs_every_slot);
static_assert(plain::slots_of(8) == 2 && by_expert::slots_of(8) == 8 && planned::slots_of(8) == 2);
static_assert(plain::rows_of(10, 8) == 20 && by_expert::rows_of(10, 8) == 44 && by_expert::rows_of(2, 8) == 16);

TEST_CASE("forward reads the ids from what the selection sees, and the weights from the scores") {
  std::array<double, 3> z{0, 1, -1}, scores{}, seen{};
  std::array<double, 2> w{};
  std::array<std::int32_t, 2> ids{};
  std::array<float, 3> const bias{0, 0, 2};
  biased{mo::selection_bias{.values = bias.data()}}.forward_row(row(z), row(scores), row(seen), row(w), ids.data(), {});
  CHECK(ids == std::array<std::int32_t, 2>{2, 1});
  CHECK(w[0] == mo::logistic(-1.0));
  CHECK(w[1] == mo::logistic(1.0));
  CHECK(z == std::array<double, 3>{0, 1, -1});
}

TEST_CASE("empty slots have no expert, weight 0, and leave the weights of the others alone") {
  std::array<double, 3> z{std::log(0.4), std::log(0.4), std::log(0.2)}, scores{};
  std::array<double, 3> w{};
  std::array<std::int32_t, 3> ids{};
  spread const router;
  router.forward_row(row(z), row(scores), row(scores), row(w), ids.data(), {});
  CHECK(ids == std::array<std::int32_t, 3>{0, 1, mo::no_expert});
  CHECK(w == std::array<double, 3>{0.5, 0.5, 0});

  // all empty, as a batch selection can leave a token
  ids = {mo::no_expert, mo::no_expert, mo::no_expert};
  router.weight_row(row(z), row(scores), row(w), ids.data());
  CHECK(w == std::array<double, 3>{0, 0, 0});
  std::array<double, 3> dw{1, 2, 3}, dp{}, dz{}, s{}, n{}, in{}, again{};
  router.backward_row(row(z), ids.data(), row(dw), row(dp), row(dz), row(s), row(n), row(in), row(again));
  CHECK(dz == std::array<double, 3>{0, 0, 0});
}

TEST_CASE("the gradient of a token's weights is that of its slots with experts alone") {
  std::array<double, 4> z{0.3, -0.2, 0.9, 0.1}, s{}, n{}, dp{}, dz{};
  std::array<double, 4> w{}, dw{}, in{}, again{};
  std::array<std::int32_t, 4> const ids{2, 0, mo::no_expert, mo::no_expert};
  mo::router_rows<mo::sqrt_softplus, mo::token_rounding<2, 4>, mo::renormalised> const router;
  std::array<double, 4> const c{1, -2, 0, 0};
  auto const value = [&](std::array<double, 4> at) {
    router.weight_row(row(at), row(s), row(w), ids.data());
    return c[0] * w[0] + c[1] * w[1];
  };
  dw = c;
  router.backward_row(row(z), ids.data(), row(dw), row(dp), row(dz), row(s), row(n), row(in), row(again));
  for (std::size_t e = 0; e < 4; ++e) {
    auto up = z, down = z;
    up[e] += 1e-6, down[e] -= 1e-6;
    CHECK(std::abs(dz[e] - (value(up) - value(down)) / 2e-6) < 1e-9);
  }
}

TEST_CASE("a selection on logits sees them, the others scores with bias, NaN outside their groups") {
  std::array<double, 4> a{1, 2, 3, 4}, b = a;
  planned{}.candidate_row(row(a));
  CHECK(a == b);
  std::array<float, 4> const bias{9, 0, 0, 0};
  mo::router_rows<mo::sigmoid, mo::token_rounding<2, 4>, mo::selection_bias, mo::groups<2, 1>>{
      mo::selection_bias{.values = bias.data()}}
      .candidate_row(row(b));
  CHECK(b[0] == mo::logistic(1.0) + 9);
  CHECK(b[1] == mo::logistic(2.0));
  CHECK(std::isnan(b[2]));
  CHECK(std::isnan(b[3]));
}

TEST_CASE("probabilities sum to one, but raw logits have none") {
  std::array<double, 3> a{1, -2, 0.5}, b = a, c = a;
  plain{}.probability_row(row(a));
  CHECK(a[0] + a[1] + a[2] == doctest::Approx(1));
  mo::router_rows<mo::sqrt_softplus, mo::top_k<1>>{}.probability_row(row(b));
  CHECK(b[0] + b[1] + b[2] == doctest::Approx(1));
  by_expert{}.probability_row(row(c));
  CHECK(c == std::array<double, 3>{0, 0, 0});
}
