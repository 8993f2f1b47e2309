// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/noisy_load.hpp>

#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include "properties/float_gradients.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

/// Statistics of experts whose expected loads are these.
mo::routing_statistics given(std::vector<double> const& loads) {
  mo::routing_statistics s(static_cast<std::int64_t>(loads.size()), 1, 0, true);
  for (std::size_t e = 0; e < loads.size(); ++e) s.view().expected_loads[e].add(loads[e]);
  return s;
}

std::vector<double> gradient(std::vector<double> const& loads, double factor) {
  std::vector<double> z(loads.size()), p(loads.size()), d(loads.size());
  auto const size = static_cast<std::int64_t>(loads.size());
  mo::span_row<double> logits(z.data(), size), dp(p.data(), size), dz(d.data(), size);
  mo::noisy_load<>{}.token_gradient(given(loads), factor, logits, dp, dz);
  CHECK(d == std::vector<double>(loads.size()));
  return p;
}

template <class Score, class Weigh, class Noise, std::int64_t Experts, int K, class Over>
struct composed : mo::layer_spec<mo::dims{.hidden = 7, .ffn = 5, .experts = Experts}> {
  using router = mo::router<Noise, Score, mo::top_k<K>, Weigh>;
  using losses = mo::losses<mo::noisy_load<Over>, mo::importance<Over>, mo::router_z>;
};
template <int K, class Over = mo::over::micro_batch>
using noisy = composed<mo::softmax, mo::as_scored, mo::logit_noise, 5, K, Over>;
struct alone : noisy<2> {
  using losses = mo::losses<mo::noisy_load<>>;
};

std::vector<std::int64_t> const sequences{0, 11, 11, 12, 30, 37};
std::vector<std::uint8_t> padding() {
  std::vector<std::uint8_t> mask(37, 1);
  mask[0] = mask[11] = mask[36] = 0;
  return mask;
}

template <class Spec> void gradients_pass() {
  auto const mask = padding();
  auto const check = [&](std::int64_t tokens, mo::batch const& about) {
    for (mo::testing::gradient_check const& one : mo::testing::check_gradients<Spec>(tokens, about)) {
      CAPTURE(tokens);
      CAPTURE(one.name);
      CHECK(one.error <= 1e-6);
    }
    float_gradients::agree<Spec>(tokens, about);
  };
  for (std::int64_t const tokens : {0, 1, 2, 37}) check(tokens, {.first_row = 9, .step = 2});
  check(37, {.sequences = sequences, .mask = mask});
}

}  // namespace

static_assert(mo::loss<mo::noisy_load<mo::over::sequence>> && mo::needs_expected_loads<mo::noisy_load<>>);
static_assert(!mo::needs_expected_loads<mo::load<>> && !mo::needs_probabilities<mo::noisy_load<>>);

TEST_CASE("by hand: variance over squared mean; the coefficient does not enter") {
  // mean 2, deviations 1, −1, 2, −2: variance 10 / 4, over 4
  CHECK(mo::noisy_load<>{.coefficient = 9}.value(given({3, 1, 4, 0})) == 0.625);
  CHECK(mo::noisy_load<>{}.value(given({5, 0, 0})) == doctest::Approx(2).epsilon(1e-15));  // E − 1 at collapse
  // 2 / (E μ²) (L − μ − μ V) = 1/8 (L − 3.25), twice
  CHECK(gradient({3, 1, 4, 0}, 2) == std::vector<double>{-0.0625, -0.5625, 0.1875, -0.8125});
  // along all loads alike V does not change: the gradient is at a right angle to the loads
  CHECK(3 * -0.0625 + -0.5625 + 4 * 0.1875 == 0);
}

TEST_CASE("0 and no gradient at perfect balance, for one expert and for no token: never NaN") {
  for (std::vector<double> const& loads : {std::vector<double>{2, 2, 2, 2}, {7}, {0, 0, 0}}) {
    CHECK(mo::noisy_load<>{}.value(given(loads)) == 0);
    CHECK(gradient(loads, 1) == std::vector<double>(loads.size()));
  }
}

TEST_CASE("statistics without expected loads are a data_error") {
  mo::routing_statistics const plain(3, 1);
  CHECK_THROWS_WITH_AS(static_cast<void>(mo::noisy_load<>{}.value(plain)),
                       "noisy_load was given statistics whose expected loads were not summed.", mo::data_error);
}

TEST_CASE("the loads of a layer are those of the paper's formula, with a sort of all other experts") {
  mo::context<> ctx;
  mo::moe_layer<noisy<2>> const layer{ctx, {.router = {mo::logit_noise{.key = mo::seed{6}}}}};
  auto weights = layer.make_weights(mo::seed{1});
  weights.for_each([](mo::parameter const& p, auto values) {
    for (std::size_t i = 0; p.name == "router.noise" && i < values.size(); ++i)
      values[i] = static_cast<float>(mo::normal(mo::seed{5}, 0, i));
  });
  mo::matrix<float> x(37, 7), y(37, 7);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto const mask = padding();
  auto const tape = layer.forward(weights, x, y, {.mask = mask, .first_row = 3, .step = 8});
  mo::logit_noise const noise{.key = mo::seed{6}};
  std::vector<double> wanted(5);
  for (std::int64_t t = 0; t < 37; ++t)
    for (std::int64_t e = 0; e < 5 && mask[static_cast<std::size_t>(t)] != 0; ++e) {
      std::vector<double> others;
      for (std::int64_t i = 0; i < 5; ++i)
        if (i != e) others.push_back(static_cast<double>(tape.logits()(t, i)));
      std::sort(others.rbegin(), others.rend());
      double const sigma = std::log1p(std::exp(static_cast<double>(tape.noise_logits()(t, e)))) + 0.01;
      double const z = static_cast<double>(tape.logits()(t, e)) - noise.draw<double>(3 + t, 8, e, 5) * sigma;
      wanted[static_cast<std::size_t>(e)] += std::erfc(-(z - others[1]) / sigma / std::sqrt(2.0)) / 2;
    }
  auto const loads = layer.report(tape).layer(0).statistics.expected_loads();
  REQUIRE(loads.size() == 5);
  for (std::size_t e = 0; e < 5; ++e) CHECK(loads[e] == doctest::Approx(wanted[e]).epsilon(1e-5));
  CHECK(layer.report(tape).value<mo::noisy_load<>>() > 0);
}

TEST_CASE("where every expert is chosen each has the load T, and the loss neither value nor gradient") {
  mo::context<> ctx;
  mo::moe_layer<noisy<5>> const layer{ctx, mo::testing::trained_options<noisy<5>>()};
  auto const weights = layer.make_weights(mo::seed{1});
  mo::matrix<float> x(37, 7), y(37, 7);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto const tape = layer.forward(weights, x, y);
  CHECK(layer.report(tape).layer(0).statistics.expected_loads() == std::vector<double>(5, 37));
  CHECK(layer.report(tape).value<mo::noisy_load<>>() == 0);
  gradients_pass<noisy<5>>();
}

TEST_CASE_TEMPLATE("gradients of the layer equal differences for every size, with masks, over every unit", Score,
                   mo::softmax, mo::sigmoid) {
  using mo::logit_noise, mo::over::micro_batch, mo::over::sequence, mo::over::global_batch;
  gradients_pass<composed<Score, mo::as_scored, logit_noise, 1, 1, micro_batch>>();
  gradients_pass<composed<Score, mo::renormalised, logit_noise, 3, 2, sequence>>();
  gradients_pass<composed<Score, mo::softmax_of_selected, logit_noise, 8, 3, micro_batch>>();
  gradients_pass<composed<Score, mo::as_scored, logit_noise, 40, 4, global_batch>>();
  gradients_pass<composed<Score, mo::as_scored, mo::constant_logit_noise<std::ratio<1, 2>>, 8, 2, sequence>>();
}

TEST_CASE("gradients of the loss alone equal differences") { gradients_pass<alone>(); }

TEST_CASE("layers with the loss conform") {
  CHECK(mo::testing::conforms<noisy<2>>());
  CHECK(mo::testing::conforms<noisy<2, mo::over::sequence>>());
  CHECK(mo::testing::conforms<
        composed<mo::softmax, mo::as_scored, mo::constant_logit_noise<>, 8, 2, mo::over::micro_batch>>());
}

TEST_CASE("loads add up to those of all tokens, to the last bit, over micro-batches and sequences") {
  using spec = noisy<2, mo::over::global_batch>;
  mo::context<> ctx{mo::host{.threads = 3}};
  mo::moe_layer<spec> const layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  mo::matrix<float> x(300, 7), y(300, 7);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::loss_ledger<spec> whole{ctx, 1}, parts{ctx, 1};
  whole.record(0, layer.forward(weights, x, y));
  for (std::int64_t first : {200, 0, 100})
    parts.record(0, layer.forward(weights, x.rows(first, 100), y.rows(first, 100), {.first_row = first}));
  CHECK(parts.reduce().layer(0).statistics == whole.reduce().layer(0).statistics);
  CHECK(parts.reduce().value<mo::noisy_load<mo::over::global_batch>>() ==
        whole.reduce().value<mo::noisy_load<mo::over::global_batch>>());

  using by_sequence = noisy<2, mo::over::sequence>;
  mo::moe_layer<by_sequence> const cut{ctx};
  std::vector<std::int64_t> const ends{0, 70, 70, 133, 300};
  auto const tape = cut.forward(cut.make_weights(mo::seed{1}), x, y, {.sequences = ends});
  auto table = tape.statistics();
  mo::routing_statistics sum(5, 2, 0, true);
  for (std::int64_t u = 1; u < 5; ++u) sum += mo::routing_statistics(table.view().unit(u));
  CHECK(sum == mo::routing_statistics(table.view().unit(0)));
  CHECK(sum.expected_loads() == whole.reduce().layer(0).statistics.expected_loads());
}
