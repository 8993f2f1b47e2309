// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/router.hpp>

#include "router/example.hpp"

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <ratio>
#include <set>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

using raw = mo::router<mo::softmax, mo::top_k<2>>;
using normalised = mo::router<mo::renormalised, mo::top_k<2>, mo::softmax>;

/// Identity-like experts: expert e multiplies by e + 1; y and dy/dlogits of token 0.
template <class Router> struct multiplied {
  double y = 0;
  std::vector<double> gradient = std::vector<double>(4);
  explicit multiplied(std::int64_t token) {
    auto z = example::make_logits<double>();
    std::array<std::int32_t, 2> ids{};
    std::vector<double> s(4), w(2), dw(2), dp(4), n(4), in(2);
    mo::span_row<double> const logits(z.row(token), 4), scores(s.data(), 4), weights(w.data(), 2),
        dweights(dw.data(), 2), dprobabilities(dp.data(), 4), dlogits(gradient.data(), 4), scratch(n.data(), 4),
        inputs(in.data(), 2);
    Router const router;
    router.forward_row(logits, scores, scores, weights, ids.data(), {});
    for (std::size_t j = 0; j < 2; ++j) y += w[j] * (ids[j] + 1), dw[j] = ids[j] + 1;
    router.backward_row(logits, ids.data(), dweights, dprobabilities, dlogits, scores, scratch, inputs, weights);
  }
};

/// What it is told to choose, sound or not.
struct listed {
  static constexpr int count = 2;
  std::vector<std::pair<int, int>> choices;  // slot, expert
  void forward(mo::score_row auto&, auto const& chosen) const {
    for (auto const& [slot, expert] : choices) chosen(slot, expert);
  }
};

/// All scores are NaN but those of the first experts.
struct mostly_nan {
  int left = 0;
  void forward(mo::score_row auto& row) const {
    row.map_indexed([&](auto v, int e) { return e < left ? v : static_cast<decltype(v)>(not_a_number); });
  }
  void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

}  // namespace

TEST_CASE("the worked example: ids, weights, sums and gradients") {
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  mo::routing const r = normalised{}.forward(ctx, z);
  int const ids[6][2] = {{0, 1}, {0, 2}, {1, 2}, {3, 0}, {2, 0}, {0, 3}};
  for (int t = 0; t < 6; ++t)
    for (int j = 0; j < 2; ++j) CHECK(r.expert(t, j) == ids[t][j]);
  CHECK(std::abs(r.weight(0, 0) - .731059f) < 1e-6f);
  CHECK(std::abs(r.weight(1, 0) - .622459f) < 1e-6f);
  CHECK(std::abs(r.weight(1, 1) - .377541f) < 1e-6f);
  CHECK(std::abs(r.weight(4, 0) - .880797f) < 1e-6f);
  mo::routing const scores = raw{}.forward(ctx, z);
  CHECK(std::abs(scores.weight(1, 0) - .473991f) < 1e-6f);
  CHECK(std::abs(scores.weight(1, 1) - .287490f) < 1e-6f);

  CHECK(std::abs(r.weight(4, 1) - .119203f) < 1e-6f);

  // identity experts give x times the sum of the weights: 1 where they are normalised
  double const kept[6] = {.880797, .761481, .792356, .880797, .918752, .880797};
  for (int t = 0; t < 6; ++t) {
    CHECK(std::abs(r.weight(t, 0) + r.weight(t, 1) - 1) < 1e-6f);
    CHECK(std::abs(scores.weight(t, 0) + scores.weight(t, 1) - kept[t]) < 1e-6);
  }

  double const y_normalised[6] = {1.268941, 1.755081, 2.268941, 3.193176, 2.761594, 1.806824};
  double const y_raw[6] = {1.117680, 1.336461, 1.797809, 2.812540, 2.537221, 1.591446};
  for (std::int64_t t = 0; t < 6; ++t) {
    CHECK(std::abs(multiplied<normalised>(t).y - y_normalised[t]) < 1e-6);
    CHECK(std::abs(multiplied<raw>(t).y - y_raw[t]) < 1e-6);
  }
  double const d_normalised[4] = {-.196612, .196612, 0, 0}, d_raw[4] = {-.075776, .209006, -.097399, -.035831};
  for (std::size_t e = 0; e < 4; ++e) {
    CHECK(std::abs(multiplied<normalised>(0).gradient[e] - d_normalised[e]) < 1e-6);
    CHECK(std::abs(multiplied<raw>(0).gradient[e] - d_raw[e]) < 1e-6);
  }
}

TEST_CASE("softmax of the selected equals renormalised softmax") {
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  mo::routing const a = normalised{}.forward(ctx, z);
  mo::routing const b = mo::router<mo::softmax, mo::top_k<2>, mo::softmax_of_selected>{}.forward(ctx, z);
  for (int t = 0; t < 6; ++t)
    for (int j = 0; j < 2; ++j) {
      CHECK(a.expert(t, j) == b.expert(t, j));
      CHECK(a.weight(t, j) == doctest::Approx(b.weight(t, j)).epsilon(1e-6));
    }
}

TEST_CASE("sigmoid scores keep the order of the logits, and a scale multiplies the weights") {
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  mo::routing const r =
      mo::router<mo::sigmoid, mo::top_k<2>, mo::renormalised, mo::scale<std::ratio<5, 2>>>{}.forward(ctx, z);
  for (int t = 0; t < 6; ++t) CHECK(r.weight(t, 0) + r.weight(t, 1) == doctest::Approx(2.5));
  auto const s = [](double v) { return 1 / (1 + std::exp(-v)); };
  CHECK(r.expert(0, 0) == 0);
  CHECK(r.weight(0, 0) == doctest::Approx(2.5 * s(2) / (s(2) + s(1))));
  mo::router<mo::sigmoid, mo::top_k<1>, mo::scale<>> const at_run_time{mo::scale<>{.factor = 3}};
  CHECK(at_run_time.forward(ctx, z).weight(0, 0) == doctest::Approx(3 * s(2)));
}

TEST_CASE("one expert, all experts, equal logits") {
  mo::context<> ctx;
  mo::matrix<float> const one(3, 1), equal(2, 5);
  mo::routing const single = mo::router<mo::softmax, mo::top_k<1>>{}.forward(ctx, one);
  CHECK(single.expert(2, 0) == 0);
  CHECK(single.weight(2, 0) == 1);
  mo::routing const all = mo::router<mo::softmax, mo::top_k<5>>{}.forward(ctx, equal);
  for (int j = 0; j < 5; ++j) {
    CHECK(all.expert(1, j) == j);
    CHECK(all.weight(1, j) == doctest::Approx(0.2));
  }
  CHECK(raw{}.forward(ctx, mo::matrix<float>(0, 4)).tokens == 0);
}

TEST_CASE("logits that are not finite are rejected by name, or sanitised to ids in range") {
  mo::context<> ctx;
  auto z = example::make_logits<float>();
  z(1, 1) = not_a_number;
  z(2, 0) = infinity;
  z(2, 3) = infinity;
  for (int e = 0; e < 4; ++e) z(3, e) = not_a_number, z(4, e) = -infinity;
  CHECK_THROWS_WITH_AS(normalised{}.forward(ctx, z), "the router logits of token 1 are not all finite.",
                       mo::data_error);

  mo::routing const r = normalised{}.forward(ctx, z, mo::non_finite::sanitise);
  for (int t = 0; t < 6; ++t) {
    std::set<int> const distinct{r.expert(t, 0), r.expert(t, 1)};
    CHECK(distinct.size() == 2);
    CHECK(*distinct.begin() >= 0);
    CHECK(*distinct.rbegin() < 4);
    CHECK(std::isfinite(r.weight(t, 0) + r.weight(t, 1)));
  }
  CHECK(r.state(0) == mo::token_state::routed);
  CHECK(r.state(1) == mo::token_state::sanitised);
  CHECK(r.expert(1, 0) == 0);
  CHECK(r.expert(1, 1) == 2);
  CHECK(r.expert(2, 0) == 0);  // an equal share among the infinite ones
  CHECK(r.expert(2, 1) == 3);
  CHECK(r.weight(2, 0) == 0.5f);
  for (int t : {3, 4}) {
    CHECK(r.state(t) == mo::token_state::unroutable);
    CHECK(r.weight(t, 0) == 0);
    CHECK_FALSE(r.dispatched(t));
  }
  mo::routing const clean = normalised{}.forward(ctx, example::make_logits<float>());
  for (int j = 0; j < 2; ++j) CHECK(r.weight(5, j) == clean.weight(5, j));
}

namespace {

/// The gradient of the logits where every weight has the gradient 1, and every probability.
template <class Router>
mo::matrix<float> gradient_of(mo::context<>& ctx, mo::matrix<float> const& z, mo::routing<float> const& r) {
  mo::matrix<float> d(z.rows(), z.cols());
  std::vector<float> dweights(static_cast<std::size_t>(r.tokens * r.slots));
  for (std::int64_t s = 0; s < r.tokens * r.slots; ++s) dweights[static_cast<std::size_t>(s)] = r.ids[s] < 0 ? 0 : 1;
  mo::kernels::route_backward<Router, float>(
      ctx.engine(), Router{}, z, r.view(), dweights.data(),
      [](std::int64_t, auto, auto dp, auto) { dp.map_indexed([](float, int) { return 1.0f; }); }, d.view(), false);
  return d;
}

}  // namespace

TEST_CASE_TEMPLATE(
    "each kind of logit under both policies: refused by name, or routed with ids in range and finite weights", Router,
    normalised, mo::router<mo::sigmoid, mo::top_k<2>, mo::renormalised>,
    mo::router<mo::sqrt_softplus, mo::top_k<2>, mo::renormalised>,
    mo::router<mo::sqrt_softplus, mo::top_k<2>, mo::softmax_of_selected>,
    mo::router<mo::sigmoid, mo::selection_bias, mo::groups<2, 1>, mo::top_k<2>, mo::renormalised>,
    mo::router<mo::softmax, mo::groups<2, 1, mo::group_score::largest>, mo::top_k<2>, mo::renormalised>,
    mo::router<mo::sigmoid, mo::expert_choice<2>>, mo::router<mo::softmax, mo::sinkhorn<2>, mo::renormalised>,
    mo::router<mo::sqrt_softplus, mo::token_rounding<2, 4>>) {
  using state = mo::token_state;
  constexpr float huge = 1e30f, tiny = 1e-42f;
  struct {
    std::array<float, 4> row;
    bool refused;
    state sanitised;
  } const cases[] = {
      {{1, not_a_number, 0, 2}, true, state::sanitised},
      {{1, infinity, 0, 2}, true, state::sanitised},
      {{1, -infinity, 0, 2}, true, state::sanitised},
      {{infinity, -infinity, not_a_number, infinity}, true, state::sanitised},
      {{-infinity, -infinity, -infinity, -infinity}, true, state::unroutable},
      {{not_a_number, not_a_number, not_a_number, not_a_number}, true, state::unroutable},
      {{huge, -huge, 0, huge}, false, state::routed},
      {{tiny, -tiny, 0, tiny}, false, state::routed},
  };
  mo::context<> ctx;
  for (auto const& c : cases) {
    auto z = example::make_logits<float>();
    std::copy(c.row.begin(), c.row.end(), z.row(3));
    CAPTURE(c.row[0]);
    CAPTURE(c.row[1]);
    if (c.refused)
      CHECK_THROWS_WITH_AS(Router{}.forward(ctx, z), "the router logits of token 3 are not all finite.",
                           mo::data_error);
    else
      CHECK(Router{}.forward(ctx, z).state(3) == state::routed);
    mo::routing const r = Router{}.forward(ctx, z, mo::non_finite::sanitise);
    CHECK(r.state(3) == c.sanitised);
    CHECK_NOTHROW(r.check());
    float all = 0;
    for (std::int64_t j = 0; j < r.slots; ++j) all += r.weight(3, j);
    CHECK(std::isfinite(all));
    bool const none = c.sanitised == state::unroutable;
    CHECK(r.dispatched(3) != none);
    if (mo::row_independent<Router>) CHECK(r.expert(3, 0) != r.expert(3, 1));
    if (none) CHECK(all == 0);
    if (mo::row_independent<Router> && !none) CHECK(all == doctest::Approx(1));
    auto const d = gradient_of<Router>(ctx, z, r);
    for (int e = 0; e < 4; ++e) {
      for (int t = 0; t < 6; ++t) CHECK(std::isfinite(d(t, e)));
      if (c.refused) CHECK(d(3, e) == 0);
    }
  }
}

TEST_CASE("a sanitised token has finite weights where the scores are its logits") {
  mo::context<> ctx;
  mo::matrix<float> z(1, 4);
  z(0, 0) = not_a_number, z(0, 1) = 3, z(0, 2) = -infinity, z(0, 3) = not_a_number;
  auto const route = [&](auto const& router) { return router.forward(ctx, z, mo::non_finite::sanitise); };
  mo::routing const raw_scores = route(mo::router<mo::raw_logits, mo::top_k<3>>{});
  CHECK(raw_scores.expert(0, 0) == 1);
  CHECK(raw_scores.weight(0, 0) == 3);
  for (int j : {1, 2}) CHECK(raw_scores.weight(0, j) == 0);
  mo::routing const of_selected = route(mo::router<mo::raw_logits, mo::top_k<3>, mo::softmax_of_selected>{});
  CHECK(of_selected.weight(0, 0) == 1);
  for (int j : {1, 2}) CHECK(of_selected.weight(0, j) == 0);
  z(0, 1) = infinity;
  CHECK(route(mo::router<mo::raw_logits, mo::top_k<1>>{}).weight(0, 0) == std::numeric_limits<float>::max());
}

TEST_CASE("huge and denormal logits are finite logits") {
  mo::context<> ctx;
  mo::matrix<float> z(2, 4);
  z(0, 2) = 1e30f;
  z(1, 1) = 1e-42f;
  mo::routing const r = normalised{}.forward(ctx, z);
  CHECK(r.expert(0, 0) == 2);
  CHECK(r.weight(0, 0) == 1);
  CHECK(r.expert(0, 1) == 0);
  CHECK(r.weight(1, 0) == 0.5f);
}

TEST_CASE("a selection that leaves a slot without an expert in range is a data error that names the token") {
  using chooser = mo::router<mo::softmax, listed>;
  constexpr int least = std::numeric_limits<int>::min(), most = std::numeric_limits<int>::max();
  mo::context<> ctx;
  auto const z = example::make_logits<float>();
  mo::routing const sound = chooser{listed{{{1, 3}, {0, 2}}}}.forward(ctx, z);
  CHECK(sound.expert(5, 0) == 2);
  CHECK(sound.expert(5, 1) == 3);
  for (std::vector<std::pair<int, int>> const& choices : {std::vector<std::pair<int, int>>{{0, 1}, {1, -1}},
                                                          {{0, 4}, {1, 2}},
                                                          {{0, least}, {1, most}},
                                                          {{0, 1}},
                                                          {{0, 1}, {0, 2}},
                                                          {{0, 1}, {2, 3}},
                                                          {{-1, 1}, {1, 2}},
                                                          {{least, 1}, {most, 1}},
                                                          {}})
    CHECK_THROWS_WITH_AS((chooser{listed{choices}}.forward(ctx, z)),
                         "the router gave token 0 fewer than 2 distinct experts in 0 … 3.", mo::data_error);
}

TEST_CASE("so are scores of which fewer than k are numbers, and logits of fewer than k experts") {
  mo::context<> ctx{mo::host{.threads = 2}};
  auto const z = example::make_logits<float>();
  for (int const left : {0, 1, 2})
    CHECK_THROWS_WITH_AS((mo::router<mostly_nan, mo::top_k<3>>{mostly_nan{left}}.forward(ctx, z)),
                         "the router gave token 0 fewer than 3 distinct experts in 0 … 3.", mo::data_error);
  CHECK_NOTHROW(mo::router<mostly_nan, mo::top_k<3>>{mostly_nan{3}}.forward(ctx, z));
  CHECK_THROWS_WITH_AS((mo::router<mo::softmax, mo::top_k<5>>{}.forward(ctx, z)),
                       "a router of 5 slots cannot choose from 4 experts.", mo::config_error);
}

TEST_CASE("logits that are not finite are named before experts that are missing") {
  mo::context<> ctx;
  auto z = example::make_logits<float>();
  z(4, 2) = not_a_number;
  mo::router<mostly_nan, mo::top_k<2>> const router;
  CHECK_THROWS_WITH_AS(router.forward(ctx, z), "the router logits of token 4 are not all finite.", mo::data_error);
  CHECK_THROWS_WITH_AS(router.forward(ctx, z, mo::non_finite::sanitise),
                       "the router gave token 0 fewer than 2 distinct experts in 0 … 3.", mo::data_error);
}
