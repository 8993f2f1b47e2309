// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/loss_gradients.hpp>

#include <moiety/cuda.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

template <class T, class Backend> struct on : mo::deployment<> {
  using backend = Backend;
  using element = T;
};

/// A user's loss, the same source on either side: Σ_e P̄_e² of the mean probabilities.
struct concentration {
  static constexpr std::string_view name = "concentration";
  using unit = mo::over::micro_batch;
  float coefficient = 0;

  double value(mo::statistics_view const& of) const {
    double sum = 0;
    for (auto const& e : of.experts) sum += std::pow(e.probability.value() / static_cast<double>(of.tokens()), 2);
    return of.tokens() > 0 ? sum : 0;
  }
  template <mo::score_row Row>
  MOIETY_HD void token_gradient(mo::statistics_view const& of, typename Row::value_type factor, Row const&, Row& dp,
                                Row&) const {
    double const scale = 2 * static_cast<double>(factor) / static_cast<double>(of.tokens() * of.tokens());
    dp.map_indexed(
        [&](auto old, int e) { return old + scale * of.experts[static_cast<std::size_t>(e)].probability.value(); });
  }
};

template <class Over, class Score, std::int64_t Experts>
struct all_losses : mo::layer_spec<mo::dims{.hidden = 13, .ffn = 7, .experts = Experts}> {
  using router = mo::router<Score, mo::top_k<3>>;
  using losses = mo::losses<mo::load_balance<Over>, mo::importance<Over>, mo::load<Over>, mo::device_balance<4, Over>,
                            mo::communication_balance<4, 2, Over>, mo::router_z, concentration>;
};

struct accumulated : mo::layer_spec<mo::dims{.hidden = 13, .ffn = 7, .experts = 12}> {
  using prefix = mo::load_balance<mo::over::global_batch, mo::counts::prefix>;
  using previous = mo::load_balance<mo::over::global_batch, mo::counts::previous_step>;
  using router = mo::router<mo::softmax, mo::top_k<3>>;
  using losses = mo::losses<prefix, previous>;
};

struct outcome {
  std::vector<double> dx, router_gradient;
  std::vector<mo::routing_statistics> statistics;
  std::string report;
};

template <class Engine, class T>
void append(std::vector<double>& to, Engine& engine, T const* from, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  engine.memory().load(values.data(), from, count * static_cast<std::int64_t>(sizeof(T)));
  for (T const v : values) to.push_back(static_cast<double>(v));
}

/// Two steps of two micro-batches, the second of the two with the counts that the first left.
template <class Spec, class Deployment> outcome run(std::vector<std::int64_t> const& sequences, bool masked) {
  using T = typename mo::context<Deployment>::element;
  constexpr std::int64_t tokens = 60, hidden = mo::spec_of<Spec>::hidden;
  mo::context<Deployment> ctx;
  mo::layer_options<Spec> options;
  float coefficient = 0.5f;
  options.losses.for_each([&]<class Loss>(Loss const&) {
    options.losses.template get<Loss>().coefficient = coefficient;
    coefficient *= 0.75f;
  });
  mo::moe_layer<Spec, Deployment> layer{ctx, options};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dy = ctx.matrix(tokens, hidden),
       dx = ctx.matrix(tokens, hidden);
  std::vector<std::uint8_t> padding(tokens, 1);
  for (std::size_t const t : {0, 7, 8, 30, 59}) padding[t] = 0;
  mo::buffer const mask(masked ? tokens : 0, ctx.memory());
  ctx.memory().store(mask.data(), padding.data(), mask.bytes());
  mo::step_counts counts(mo::spec_of<Spec>::experts);
  outcome result;
  for (int step = 0; step < 2; ++step) {
    for (int micro = 0; micro < 2; ++micro) {
      auto gradients = layer.make_gradients();
      mo::fill_normal(ctx, x, mo::seed{static_cast<std::uint64_t>(5 + 2 * step + micro)});
      mo::fill_normal(ctx, dy, mo::seed{4});
      auto tape = layer.forward(
          weights, x, y,
          {.sequences = sequences,
           .mask = {static_cast<std::uint8_t const*>(mask.data()), static_cast<std::size_t>(mask.bytes())},
           .counts = &counts});
      counts.add(tape.statistics());
      layer.backward(weights, tape, dy, dx, gradients);
      mo::statistics_table table = tape.statistics();
      for (std::int64_t u = 0; u < table.view().count; ++u) result.statistics.emplace_back(table.view().unit(u));
      std::ostringstream text;
      text.precision(17);
      text << layer.report(tape);
      result.report += text.str();
      append(result.dx, ctx.engine(), static_cast<T const*>(dx.data()), tokens * hidden);
      gradients.for_each([&](mo::parameter const& p, auto values) {
        if (p.name == "router.weight")
          append(result.router_gradient, ctx.engine(), values.data(), static_cast<std::int64_t>(values.size()));
      });
    }
    counts.next_step();
  }
  ctx.synchronize();
  return result;
}

double distance(std::vector<double> const& wanted, std::vector<double> const& got) {
  REQUIRE(wanted.size() == got.size());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i)
    error += (wanted[i] - got[i]) * (wanted[i] - got[i]), norm += wanted[i] * wanted[i];
  CHECK(norm > 0);
  return std::sqrt(error / norm);
}

template <class Spec, class T> void compare(std::vector<std::int64_t> const& sequences = {}, bool masked = false) {
  outcome const host = run<Spec, on<T, mo::host>>(sequences, masked);
  outcome const device = run<Spec, on<T, mo::cuda>>(sequences, masked);
  CHECK(device.statistics == host.statistics);
  CHECK(device.report == host.report);
  CHECK(distance(host.dx, device.dx) <= 1e-6);
  CHECK(distance(host.router_gradient, device.router_gradient) <= 1e-6);
}

}  // namespace

TEST_CASE("every loss on a device has the value and the gradient of the host") {
  compare<all_losses<mo::over::micro_batch, mo::softmax, 12>, float>();
  compare<all_losses<mo::over::micro_batch, mo::sigmoid, 40>, double>({}, true);
  compare<all_losses<mo::over::sequence, mo::softmax, 40>, float>({0, 10, 10, 45, 60}, true);
}

TEST_CASE("a device keeps the counts of the step with its tape") { compare<accumulated, float>({}, true); }
