// SPDX-License-Identifier: Apache-2.0
// What holds of a layer with any selection: memory as its costs say, every slot accounted for, inference and threads that
// change no bit, and logits that are not finite under both policies.
#include <moiety/layer/costs.hpp>
#include <moiety/moiety.hpp>

#include "counting_memory.hpp"
#include "properties/router_gradients.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <ratio>
#include <vector>

namespace {

namespace mo = moiety;
using router_gradients::surroundings;

template <class... Roles> struct layer_with : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 6, .experts = 6}> {
  using router = mo::router<Roles...>;
  using losses = mo::losses<mo::router_z>;
};

using top_p = layer_with<mo::softmax, mo::top_p<3, std::ratio<1, 2>>, mo::renormalised>;
using hashed = layer_with<mo::sqrt_softplus, mo::hash<2>, mo::renormalised>;
using replayed = layer_with<mo::raw_logits, mo::precomputed<2>>;
using drawn = layer_with<mo::sigmoid, mo::forced<2, mo::imbalance::zipf>>;
using grouped = layer_with<mo::sigmoid, mo::selection_bias, mo::groups<3, 2>, mo::top_k<3>, mo::renormalised>;
using unbounded = layer_with<mo::raw_logits, mo::top_k<2>>;
using by_expert = layer_with<mo::softmax, mo::expert_choice<2, std::ratio<5, 4>>>;
using planned = layer_with<mo::sigmoid, mo::sinkhorn<2>, mo::renormalised>;
using rounded = layer_with<mo::sqrt_softplus, mo::token_rounding<2, 8>, mo::renormalised>;

/// Tokens of each expert at most half of the mean.
template <class... Options> struct limited : layer_with<mo::sigmoid, mo::top_k<2>> {
  using capacity = mo::capacity<std::ratio<1, 2>, Options...>;
};

using on_input = layer_with<mo::sigmoid, mo::top_k<2>, mo::on_input>;
using on_activation = layer_with<mo::softmax, mo::top_k<2>, mo::on_activation>;
using mixed = layer_with<mo::softmax, mo::top_k<2>, mo::sparsemixer<std::ratio<1, 4>>>;

/// x with its noise takes more room than what the experts compute.
struct noisy : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 1, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::jitter<>, mo::top_k<1>, mo::linear_bias>;
};

/// Scores of all experts take more room than what the experts compute.
struct wide : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 1, .experts = 200}> {
  using router = mo::router<mo::softmax, mo::sinkhorn<1>>;
};

/// One forward with all that it was given; with a call that spoils x first.
template <class Spec> struct forwarded {
  using router = typename Spec::router;
  surroundings with;
  mo::context<> ctx;
  mo::moe_layer<Spec> layer;
  typename mo::moe_layer<Spec>::weights_type weights = layer.make_weights(mo::seed{1});
  mo::matrix<float> x, y;
  mo::batch about;
  std::optional<typename mo::moe_layer<Spec>::tape_type> tape;

  explicit forwarded(std::int64_t tokens, bool masked, int threads = 1)
      : with(tokens, 6, router::slots_of(6), masked),
        ctx{mo::host{.threads = threads}},
        layer(ctx, {.router = router_gradients::furnished<router>(with), .name = "layer 7"}),
        x(tokens, 8),
        y(tokens, 8),
        about(with.about<typename router::selection_type>()) {
    mo::fill_normal(ctx, x, mo::seed{2});
  }

  forwarded& run() {
    tape.emplace(layer.forward(weights, x, y, about));
    return *this;
  }
};

template <class Spec> void accounts_for_every_slot() {
  for (std::int64_t const tokens : {0, 1, 37, 200}) {
    forwarded<Spec> of(tokens, true);
    of.run();
    auto const report = of.layer.report(*of.tape);
    auto const& routes = of.tape->routing();
    auto const counts = report.counts();
    routes.check();
    std::int64_t rows = 0, empty = 0;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t j = 0; j < routes.slots; ++j) {
        rows += routes.has_row(t, j) ? 1 : 0;
        empty += routes.dispatched(t) && routes.expert(t, j) == mo::no_expert ? 1 : 0;
        if (!routes.has_row(t, j)) CHECK(routes.weight(t, j) == 0);
        CHECK((of.tape->permutation().row_of(t, j) >= 0) == routes.has_row(t, j));
      }
    CHECK(rows == of.tape->permutation().rows());
    CHECK(rows == std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
    CHECK(rows + empty + report.states().masked * routes.slots == tokens * routes.slots);
    CHECK(rows <= mo::spec_of<Spec>::rows(tokens));
    for (std::size_t e = 0; e < counts.size(); ++e)
      CHECK(counts[e] == of.tape->permutation().offsets()[e + 1] - of.tape->permutation().offsets()[e]);
  }
}

/// The bits of y, dx and all gradients.
template <class Spec> std::vector<float> step(int threads) {
  forwarded<Spec> of(200, true, threads);
  of.run();
  auto gradients = of.layer.make_gradients();
  mo::matrix<float> dx(200, 8);
  of.layer.backward(of.weights, *of.tape, of.x, dx, gradients);
  std::vector<float> all(of.y.begin(), of.y.end());
  all.insert(all.end(), dx.begin(), dx.end());
  gradients.for_each([&](mo::parameter const&, auto values) { all.insert(all.end(), values.begin(), values.end()); });
  return all;
}

template <class Spec> void changes_no_bit() {
  forwarded<Spec> of(200, true);
  mo::matrix<float> inferred(200, 8);
  of.run().layer.infer(of.weights, of.x, inferred, of.about);
  CHECK(std::equal(of.y.begin(), of.y.end(), inferred.begin()));
  CHECK(step<Spec>(1) == step<Spec>(2));
}

/// The first value of a token's x becomes one whose logits are not finite.
template <class Spec> void refuses_or_sanitises(float spoiled) {
  forwarded<Spec> of(40, false);
  of.x(11, 0) = spoiled;
  std::fill(of.y.begin(), of.y.end(), 77.0f);
  CHECK_THROWS_WITH_AS(of.run(), "layer 7: the router logits of token 11 are not all finite.", mo::data_error);
  CHECK(std::all_of(of.y.begin(), of.y.end(), [](float v) { return v == 77.0f; }));

  auto options = mo::layer_options<Spec>{.router = router_gradients::furnished<typename Spec::router>(of.with),
                                         .non_finite = mo::non_finite::sanitise};
  mo::moe_layer<Spec> const layer{of.ctx, options};
  mo::matrix<float> dx(40, 8);
  auto gradients = layer.make_gradients();
  auto tape = layer.forward(of.weights, of.x, of.y, of.about);
  tape.routing().check();
  auto const report = layer.report(tape);
  auto const states = report.states();
  CHECK(states.routed == 39);
  CHECK(states.sanitised + states.unroutable == 1);
  for (std::int64_t s = 0; s < 40 * tape.routing().slots; ++s) CHECK(std::isfinite(tape.routing().weights[s]));
  CHECK(std::isfinite(report.total()));
}

template <class Spec> void meets_non_finite() {
  refuses_or_sanitises<Spec>(std::numeric_limits<float>::quiet_NaN());
  refuses_or_sanitises<Spec>(std::numeric_limits<float>::infinity());
}

/// Columns of the router by which the first value of token 11 gives it logits of a kind, and its state.
struct logits_of_a_kind {
  std::array<float, 6> first, second;
  bool refused;
  mo::token_state state;
};
constexpr float big_x = 1e5f, large = 1e34f;  // their product is infinite, and gradients of others stay finite
logits_of_a_kind const kinds[] = {
    {{0, 0, large}, {0, 0, -large}, true, mo::token_state::sanitised},        // NaN
    {{0, 0, large, 0, large}, {}, true, mo::token_state::sanitised},          // +∞
    {{0, 0, -large}, {}, true, mo::token_state::sanitised},                   // −∞
    {{large, large, -large}, {0, -large}, true, mo::token_state::sanitised},  // all three
    {{-large, -large, -large, -large, -large, -large}, {}, true, mo::token_state::unroutable},
    {{0, 0, 1e25f, 0, -1e25f}, {}, false, mo::token_state::routed},
    {{0, 1e-44f, -1e-44f}, {}, false, mo::token_state::routed},
};

/// Finite x and weights whose product, for one token, is of each kind: y, dx and all gradients stay finite.
template <class Spec> void meets_each_kind() {
  for (auto const& kind : kinds) {
    CAPTURE(&kind - kinds);
    forwarded<Spec> of(40, false);
    for (std::int64_t t = 0; t < 40; ++t) of.x(t, 0) = of.x(t, 1) = t == 11 ? big_x : 0.0f;
    for (std::int64_t c = 2; c < 8 && !kind.refused; ++c) of.x(11, c) = 0;  // its logits are of that kind alone
    of.weights.for_each([&](mo::parameter const& p, auto values) {
      for (std::size_t e = 0; p.name == "router.weight" && e < 6; ++e)
        values[8 * e] = kind.first[e], values[8 * e + 1] = kind.second[e];
    });
    std::fill(of.y.begin(), of.y.end(), 77.0f);
    if (kind.refused)
      CHECK_THROWS_WITH_AS(of.run(), "layer 7: the router logits of token 11 are not all finite.", mo::data_error);
    else
      CHECK_NOTHROW(of.run());
    CHECK(std::all_of(of.y.begin(), of.y.end(), [](float v) { return v == 77.0f; }) == kind.refused);

    mo::moe_layer<Spec> const layer{of.ctx,
                                    {.router = router_gradients::furnished<typename Spec::router>(of.with),
                                     .non_finite = mo::non_finite::sanitise}};
    mo::matrix<float> dx(40, 8);
    auto gradients = layer.make_gradients();
    auto tape = layer.forward(of.weights, of.x, of.y, of.about);
    tape.routing().check();
    CHECK(tape.routing().state(11) == kind.state);
    CHECK(layer.report(tape).states().routed == (kind.refused ? 39 : 40));
    layer.backward(of.weights, tape, of.x, dx, gradients);
    auto const finite = [](auto const& values) {
      return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
    };
    CHECK(finite(of.y));
    CHECK(finite(dx));
    gradients.for_each([&](mo::parameter const& p, auto values) {
      CAPTURE(p.name);
      CHECK(finite(values));
    });
    if (kind.state != mo::token_state::unroutable) continue;
    for (std::int64_t c = 0; c < 8; ++c) CHECK((of.y(11, c) == 0 && dx(11, c) == 0));
  }
}

template <class Spec> void asks_for_the_memory_of_its_costs(std::int64_t tokens) {
  using D = mo::deployment<>;
  CAPTURE(tokens);
  counting hook;
  mo::context<D> ctx{mo::host{.threads = 2, .memory = &hook}};
  mo::moe_layer<Spec, D> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  std::int64_t const kept = hook.live;
  CHECK(kept == 2 * mo::host_engine::scratch_bytes + mo::weight_bytes<Spec, D> + mo::gradient_bytes<Spec, D>);
  mo::matrix<float> x(tokens, 8), y(tokens, 8), dx(tokens, 8);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::tokens const size(tokens);
  std::int64_t const saved = mo::saved_bytes<Spec, D>(size), workspace = mo::workspace_bytes<Spec, D>(size);
  ctx.memory().release();
  hook.most = hook.live;
  std::int64_t working = 0;
  {
    auto tape = layer.forward(weights, x, y);
    CHECK(hook.most - kept - saved == mo::layer_workspace<Spec, D>(size));
    ctx.memory().release();
    CHECK(hook.live == kept + saved);
    hook.most = hook.live;
    layer.backward(weights, tape, y, dx, gradients);
    working = hook.most - kept - saved;
  }
  ctx.memory().release();
  hook.most = hook.live;
  layer.infer(weights, x, y);
  CHECK(std::max(working, hook.most - kept) == workspace);
}

}  // namespace

TEST_CASE("rows, empty slots and padding are all slots, and the report counts the rows") {
  accounts_for_every_slot<top_p>();
  accounts_for_every_slot<hashed>();
  accounts_for_every_slot<replayed>();
  accounts_for_every_slot<drawn>();
  accounts_for_every_slot<grouped>();
  accounts_for_every_slot<by_expert>();
  accounts_for_every_slot<planned>();
  accounts_for_every_slot<rounded>();
  accounts_for_every_slot<on_input>();
  accounts_for_every_slot<on_activation>();
  accounts_for_every_slot<mixed>();
}

TEST_CASE("infer has the bits of forward, and two threads have those of one") {
  changes_no_bit<top_p>();
  changes_no_bit<hashed>();
  changes_no_bit<replayed>();
  changes_no_bit<drawn>();
  changes_no_bit<grouped>();
  changes_no_bit<by_expert>();
  changes_no_bit<planned>();
  changes_no_bit<rounded>();
  changes_no_bit<on_input>();
  changes_no_bit<on_activation>();
  changes_no_bit<mixed>();
}

TEST_CASE("logits that are not finite are refused by name and nothing is written, or leave finite weights") {
  meets_non_finite<top_p>();
  meets_non_finite<hashed>();
  meets_non_finite<replayed>();
  meets_non_finite<drawn>();
  meets_non_finite<grouped>();
  meets_non_finite<unbounded>();
  meets_non_finite<by_expert>();
  meets_non_finite<planned>();
  meets_non_finite<rounded>();
  meets_non_finite<on_input>();
  meets_non_finite<on_activation>();
  meets_non_finite<mixed>();
}

TEST_CASE("each kind of logit of one token under both policies, and a backward after it") {
  meets_each_kind<top_p>();
  meets_each_kind<hashed>();
  meets_each_kind<drawn>();
  meets_each_kind<grouped>();
  meets_each_kind<by_expert>();
  meets_each_kind<planned>();
  meets_each_kind<rounded>();
  meets_each_kind<on_input>();
  meets_each_kind<on_activation>();
  meets_each_kind<mixed>();
  meets_each_kind<limited<>>();
  meets_each_kind<limited<mo::drop::position, mo::renormalise_after_drop>>();
  meets_each_kind<limited<mo::drop::priority, mo::per::sequence>>();
}

TEST_CASE("memory is what the costs say") {
  for (std::int64_t const tokens : {64, 1024}) {
    asks_for_the_memory_of_its_costs<by_expert>(tokens);
    asks_for_the_memory_of_its_costs<planned>(tokens);
    asks_for_the_memory_of_its_costs<rounded>(tokens);
    asks_for_the_memory_of_its_costs<top_p>(tokens);
    asks_for_the_memory_of_its_costs<wide>(tokens);
    asks_for_the_memory_of_its_costs<on_input>(tokens);
    asks_for_the_memory_of_its_costs<on_activation>(tokens);
    asks_for_the_memory_of_its_costs<noisy>(tokens);
  }
}

TEST_CASE("what a batch lacks is an error with both sizes, and nothing is written") {
  forwarded<replayed> of(10, false);
  std::fill(of.y.begin(), of.y.end(), 77.0f);
  of.about.experts = of.about.experts.first(10);
  CHECK_THROWS_WITH_AS(of.run(), "precomputed needs 10 × 2 expert ids in mo::batch{.experts}, but was given 10.",
                       mo::data_error);
  of.about.experts = {};
  CHECK_THROWS_AS(of.run(), mo::data_error);
  std::vector<std::int32_t> twice(20, 3);
  of.about.experts = twice;
  CHECK_THROWS_WITH_AS(of.run(), "layer 7: the router gave token 0 fewer than 2 distinct experts in 0 … 5.",
                       mo::data_error);
  CHECK(std::all_of(of.y.begin(), of.y.end(), [](float v) { return v == 77.0f; }));

  forwarded<hashed> by_id(10, false);
  by_id.about.ids = {};
  CHECK_THROWS_WITH_AS(by_id.run(), "hash needs token ids in mo::batch{.ids}.", mo::data_error);
}

TEST_CASE("a token that no expert chose gets 0") {
  forwarded<layer_with<mo::softmax, mo::expert_choice<1>>> of(200, false);
  of.run();
  std::int64_t without = 0;
  for (std::int64_t t = 0; t < 200; ++t) {
    if (of.tape->routing().has_row(t, 0)) continue;
    ++without;
    for (std::int64_t c = 0; c < 8; ++c) CHECK(of.y(t, c) == 0);
  }
  CHECK(without > 0);
}
