// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/loss_gradients.hpp>

#include "properties/float_gradients.hpp"

#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using by_sequence = mo::load_balance<mo::over::sequence>;
struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::router_z, by_sequence, mo::load_balance<>>;
};

}  // namespace

TEST_CASE("each trained loss enters with its scale, coefficient, and the weight of the token's unit") {
  std::vector<std::int64_t> const sequences{0, 2, 5};
  mo::statistics_table table(3, sequences);
  mo::batch_statistics const units = table.view();
  for (std::int64_t u = 0; u < 3; ++u) units.units[u].slots = 2;
  units.units[0].tokens = 5, units.units[1].tokens = 2, units.units[2].tokens = 3;
  units.units[0].chosen = 6, units.units[1].chosen = 15, units.units[2].chosen = 24;
  for (std::int64_t i = 0; i < 9; ++i) units.expert_units[i].count = i + 1;
  mo::loss_gradients<spec> const add{
      {mo::router_z{.coefficient = 0.5f}, by_sequence{.coefficient = 0.25f}}, units, 10, 4};

  std::vector<float> z{1, -2, 0.5f}, dp(3), dz(3), wanted_dp(3), wanted_dz(3);
  mo::span_row<float> const logits(z.data(), 3);
  mo::span_row<float> p(dp.data(), 3), g(dz.data(), 3), wanted_p(wanted_dp.data(), 3), wanted_g(wanted_dz.data(), 3);
  add(3, logits, p, g);
  mo::router_z{}.token_gradient(units.unit(0), 0.5f * 4 * 10, logits, wanted_p, wanted_g);
  by_sequence{}.token_gradient(units.unit(2), 0.25f * 4 * 6, logits, wanted_p, wanted_g);  // 3 of 5 tokens: weight 6
  CHECK(dp == wanted_dp);
  CHECK(dz == wanted_dz);
  CHECK(dp[0] != 0);
  CHECK(dz[0] != 0);
}

namespace {

template <class Score, class Over> struct all_losses : mo::layer_spec<mo::dims{.hidden = 7, .ffn = 5, .experts = 8}> {
  using router = mo::router<Score, mo::top_k<3>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<Over>, mo::importance<Over>, mo::load<Over>, mo::device_balance<4, Over>,
                            mo::communication_balance<4, 2, Over>, mo::router_z>;
};

template <class Spec> void gradients_pass() {
  std::vector<std::uint8_t> mask(37, 1);
  mask[0] = mask[11] = mask[36] = 0;
  std::vector<std::int64_t> const sequences{0, 11, 11, 12, 30, 37};
  for (std::int64_t const tokens : {0, 1, 2, 37})
    for (auto const& check : mo::testing::check_gradients<Spec>(tokens)) CHECK(check.error <= 1e-6);
  for (auto const& check : mo::testing::check_gradients<Spec>(37, {.sequences = sequences, .mask = mask}))
    CHECK(check.error <= 1e-6);
}

}  // namespace

TEST_CASE_TEMPLATE("every loss over every unit: gradients of the layer equal differences, with padding too", Score,
                   mo::softmax, mo::sigmoid) {
  gradients_pass<all_losses<Score, mo::over::micro_batch>>();
  gradients_pass<all_losses<Score, mo::over::sequence>>();
  gradients_pass<all_losses<Score, mo::over::global_batch>>();
}

TEST_CASE("every loss is reported, unweighted and weighted") {
  mo::context<> ctx;
  using spec = all_losses<mo::sigmoid, mo::over::sequence>;
  mo::moe_layer<spec> const layer{ctx, mo::testing::trained_options<spec>()};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(64, 7), y = ctx.matrix(64, 7);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto const report = layer.report(layer.forward(weights, x, y));
  double sum = 0;
  mo::testing::trained_options<spec>().losses.for_each([&]<class Loss>(Loss const& loss) {
    CAPTURE(Loss::name);
    CHECK(report.value<Loss>() > 0);
    CHECK(report.weighted<Loss>() == doctest::Approx(static_cast<double>(loss.coefficient) * report.value<Loss>()));
    sum += report.weighted<Loss>();
  });
  CHECK(report.total() == sum);
  CHECK(report.layer(0).statistics.groups() == 4);
}

namespace {

using own = mo::load_balance<mo::over::global_batch>;
using prefix = mo::load_balance<mo::over::global_batch, mo::counts::prefix>;
using previous = mo::load_balance<mo::over::global_batch, mo::counts::previous_step>;

template <class Loss> struct balanced : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 5}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<Loss>;
};
struct in_double : mo::deployment<> {
  using element = double;
};

/// Micro-batches of uneven size, and what a step makes of them for the router's weights.
template <class Loss> struct step {
  using layer_type = mo::moe_layer<balanced<Loss>, in_double>;
  mo::context<in_double> ctx{mo::host{.threads = 1}};
  layer_type layer{ctx, {.losses = {Loss{.coefficient = 0.5f}}}};
  typename layer_type::weights_type weights = layer.make_weights(mo::seed{1});
  typename layer_type::gradients_type gradients = layer.make_gradients();
  mo::matrix<double> x{30, 6}, y{30, 6}, dy{30, 6}, dx{30, 6};
  step() { mo::fill_normal(ctx, x, mo::seed{3}); }

  auto forward(std::int64_t first, std::int64_t count, mo::step_counts const* counts) {
    return layer.forward(weights, x.rows(first, count), y.rows(first, count), {.counts = counts});
  }
  template <class Tape> void backward(Tape& tape, std::int64_t first, std::int64_t count) {
    layer.backward(weights, tape, dy.rows(first, count), dx.rows(first, count), gradients);
  }
  /// One micro-batch of a step: forward, counted, backward.
  void run(std::int64_t first, std::int64_t count, mo::step_counts& counts) {
    auto tape = forward(first, count, &counts);
    counts.add(tape.statistics());
    backward(tape, first, count);
  }
  std::vector<double> router_gradient() {
    std::vector<double> values;
    gradients.for_each([&](mo::parameter const& p, auto of) {
      if (p.name == "router.weight") values.assign(of.begin(), of.end());
    });
    return values;
  }
};

/// By one call with all tokens, whose counts are those of the global batch.
std::vector<double> of_one_call() {
  step<own> whole;
  auto tape = whole.forward(0, 30, nullptr);
  whole.backward(tape, 0, 30);
  return whole.router_gradient();
}

void same(std::vector<double> const& got, std::vector<double> const& wanted) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i)
    error += (got[i] - wanted[i]) * (got[i] - wanted[i]), norm += wanted[i] * wanted[i];
  CHECK(norm > 0);
  CHECK(error <= 1e-24 * norm);
}

}  // namespace

TEST_CASE("a step whose last one had the same tokens accumulates the gradient of one call with all of them") {
  step<previous> s;
  mo::step_counts counts(5);
  for (auto const& [first, count] : {std::pair{20, 10}, {0, 13}, {13, 7}})
    counts.add(s.forward(first, count, &counts).statistics());
  counts.next_step();
  for (auto const& [first, count] : {std::pair{0, 13}, {13, 7}, {20, 0}, {20, 10}}) s.run(first, count, counts);
  same(s.router_gradient(), of_one_call());
}

TEST_CASE("the first step has no last one: it takes each micro-batch's own counts") {
  step<previous> s;
  step<mo::load_balance<>> micro;
  mo::step_counts counts(5);
  for (auto const& [first, count] : {std::pair{0, 13}, {13, 17}}) {
    s.run(first, count, counts);
    micro.run(first, count, counts);
  }
  CHECK(s.router_gradient() == micro.router_gradient());
}

TEST_CASE("the prefix of the last micro-batch is the whole step; that of the first is itself") {
  step<prefix> s;
  mo::step_counts counts(5);
  s.run(0, 13, counts);
  auto const first = s.router_gradient();
  step<own> alone;
  auto tape = alone.forward(0, 13, nullptr);
  alone.backward(tape, 0, 13);
  CHECK(first == alone.router_gradient());
  s.gradients.reset();
  s.run(13, 17, counts);
  auto const last = s.router_gradient();

  step<previous> other;  // with the whole step's counts as those of the last one
  mo::step_counts all(5);
  all.add(other.forward(0, 30, &all).statistics());
  all.next_step();
  other.run(13, 17, all);
  same(last, other.router_gradient());
}

TEST_CASE("a tape keeps the counts of its forward, whatever is counted before its backward") {
  step<prefix> in_turn, late;
  mo::step_counts counts(5), later(5);
  in_turn.run(0, 13, counts);
  in_turn.run(13, 17, counts);
  auto first = late.forward(0, 13, &later);
  later.add(first.statistics());
  auto second = late.forward(13, 17, &later);
  later.add(second.statistics());
  later.next_step();
  late.backward(first, 0, 13);
  late.backward(second, 13, 17);
  CHECK(late.router_gradient() == in_turn.router_gradient());
}

TEST_CASE("a composition that takes the counts of the step conforms") {
  CHECK(mo::testing::conforms<balanced<prefix>>());
  CHECK(mo::testing::conforms<balanced<previous>>());
}

TEST_CASE("counts of the step or of the last one: the gradient in float is that in double") {
  step<own> s;
  mo::step_counts counts(5);
  counts.add(s.forward(0, 30, nullptr).statistics());
  float_gradients::agree<balanced<prefix>>(37, {.counts = &counts});
  counts.next_step();
  float_gradients::agree<balanced<previous>>(37, {.counts = &counts});
}

TEST_CASE("the value is that of the global batch, whatever counts the gradient took") {
  step<prefix> s;
  mo::step_counts counts(5);
  mo::loss_ledger<balanced<prefix>> ledger{s.ctx, 1}, whole{s.ctx, 1};
  for (auto const& [first, count] : {std::pair{0, 13}, {13, 17}}) ledger.record(0, s.forward(first, count, &counts));
  whole.record(0, s.forward(0, 30, &counts));
  CHECK(ledger.reduce().value<prefix>() == whole.reduce().value<prefix>());
  CHECK(ledger.reduce().weighted<prefix>() == 0.5 * whole.reduce().value<prefix>());
}

TEST_CASE("counts that are missing or of another layer are a data_error, before anything is written") {
  step<prefix> s;
  std::fill(s.y.begin(), s.y.end(), 77.0);
  CHECK_THROWS_WITH_AS(s.forward(0, 30, nullptr),
                       "a loss with counts::prefix or counts::previous_step is trained, and the batch brings no "
                       "mo::batch{.counts}.",
                       mo::data_error);
  mo::step_counts const other(6);
  CHECK_THROWS_WITH_AS(s.forward(0, 30, &other), "mo::batch{.counts} of 6 experts was given to a layer of 5.",
                       mo::data_error);
  CHECK(s.y(0, 0) == 77);
  CHECK_NOTHROW(s.layer.infer(s.weights, s.x, s.y));  // trains nothing
  mo::moe_layer<balanced<prefix>, in_double> const measured{s.ctx};
  CHECK_NOTHROW(measured.forward(s.weights, s.x, s.y));
}
