// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/report.hpp>

#include "router/example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

struct square : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

mo::layer_record<spec> record(double balance, double z, double coefficient) {
  mo::layer_record<spec> r;
  r.add<mo::load_balance<>>(2, balance, coefficient);
  r.add<mo::router_z>(2, z, 0);
  r.tokens.routed = 7;
  r.tokens.masked = 1;
  return r;
}

}  // namespace

TEST_CASE("values are means over layers, weighted ones are sums") {
  mo::loss_report<spec> const report({record(1.5, 4, 0.5), record(2.5, 8, 0.25)});
  CHECK(report.layers() == 2);
  CHECK(report.per_layer<mo::load_balance<>>() == std::vector<double>{1.5, 2.5});
  CHECK(report.value<mo::load_balance<>>() == 2.0);
  CHECK(report.value<mo::router_z>() == 6.0);
  CHECK(report.weighted<mo::load_balance<>>() == 0.5 * 1.5 + 0.25 * 2.5);
  CHECK(report.weighted<mo::router_z>() == 0);
  CHECK(report.total() == 0.5 * 1.5 + 0.25 * 2.5);
  CHECK(report.tokens() == 7);
  CHECK(report.states().masked == 1);
}

TEST_CASE("what the worked example adds to the sum that is trained, as one of four layers") {
  struct in_double : mo::deployment<> {
    using element = double;
  };
  mo::context<in_double> ctx;
  mo::moe_layer<square, in_double> layer{
      ctx, {.losses = {mo::load_balance<>{.coefficient = .01f / 4}, mo::router_z{.coefficient = .001f / 4}}}};
  auto weights = layer.make_weights(mo::seed{1});
  weights.for_each([](mo::parameter const& p, auto values) {
    if (p.name != "router.weight") return;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 5 == 0 ? 1 : 0;  // logits are x
  });
  auto const x = example::make_logits<double>();
  mo::matrix<double> y(6, 4);
  auto const report = layer.report(layer.forward(weights, x, y, {.weight = 1.0}));
  CHECK(std::abs(report.value<mo::load_balance<>>() - 1.118394) < 1e-6);
  CHECK(std::abs(report.value<mo::router_z>() - 7.104384) < 1e-6);
  CHECK(std::abs(report.weighted<mo::load_balance<>>() - .00279599) < 1e-8);
  CHECK(std::abs(report.weighted<mo::router_z>() - .00177610) < 1e-8);
  CHECK(std::abs(report.total() - (.00279599 + .00177610)) < 1e-8);
}

TEST_CASE("max over mean load counts slots, and is 0 where there are none") {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  weights.for_each([](mo::parameter const& p, auto values) {
    if (p.name == "router.weight") std::fill(values.begin(), values.end(), 0.0f);
  });
  auto x = ctx.matrix(10, 6), y = ctx.matrix(10, 6), none = ctx.matrix(0, 6), empty = ctx.matrix(0, 6);
  auto const report = layer.report(layer.forward(weights, x, y));
  CHECK(report.counts() == std::vector<std::int64_t>{10, 10, 0});
  CHECK(report.max_over_mean() == 1.5);
  CHECK(layer.report(layer.forward(weights, none, empty)).max_over_mean() == 0);
}

namespace {

/// A record of a layer whose experts were asked for by so many slots.
mo::layer_record<square> loaded(std::vector<std::int64_t> const& loads) {
  mo::layer_record<square> r;
  auto const experts = r.statistics.view().experts;
  for (std::size_t e = 0; e < loads.size(); ++e) experts[e].count = loads[e];
  return r;
}

}  // namespace

TEST_CASE(
    "entropy is 1 for equal loads, 0 for one expert, and between them what the formula says; dead experts are "
    "counted") {
  mo::loss_report<square> const report(
      {loaded({5, 5, 5, 5}), loaded({0, 7, 0, 0}), loaded({0, 0, 0, 0}), loaded({1, 2, 0, 5}), loaded({3, 0, 3, 0})});
  CHECK(report.entropy(0) == 1);
  CHECK(report.entropy(1) == 0);
  CHECK(report.entropy(2) == 0);
  double const mixed = (std::log(8.0) + 2 * std::log(4.0) + 5 * std::log(1.6)) / 8 / std::log(4.0);
  CHECK(report.entropy(3) == doctest::Approx(mixed).epsilon(1e-14));
  CHECK(report.entropy(4) == doctest::Approx(0.5).epsilon(1e-14));
  CHECK(report.entropy() == doctest::Approx((1.5 + mixed) / 5).epsilon(1e-14));
  std::vector<std::int64_t> dead;
  for (std::size_t l = 0; l < 5; ++l) dead.push_back(report.dead(l));
  CHECK(dead == std::vector<std::int64_t>{0, 3, 4, 1, 2});
  for (std::int64_t const load : {1, 3, 7, 1000000007})
    CHECK(mo::loss_report<square>({loaded({load, load, load, load})}).entropy() == doctest::Approx(1.0).epsilon(1e-15));
  CHECK(mo::loss_report<square>(std::vector<mo::layer_record<square>>{}).entropy() == 0);
}

TEST_CASE("entropy of one expert") {
  struct one : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 1}> {
    using router = mo::router<mo::softmax, mo::top_k<1>>;
  };
  mo::layer_record<one> r;
  CHECK(mo::loss_report<one>({r}).entropy(0) == 0);
  r.statistics.view().experts[0].count = 3;
  CHECK(mo::loss_report<one>({r}).entropy(0) == 1);
}

TEST_CASE("layers have their numbers in the model") {
  mo::loss_report<square> const plain({loaded({1, 1, 0, 0}), loaded({1, 1, 1, 1})}),
      some({loaded({1, 1, 0, 0}), loaded({1, 1, 1, 1})}, {2, 5});
  CHECK(plain.number(1) == 1);
  CHECK(some.number(0) == 2);
  CHECK(some.number(1) == 5);
  std::ostringstream out;
  out << some;
  CHECK(out.str().find("layer 2: max/mean load 2, entropy 0.5, dead experts 2, slots per expert 1 1 0 0\n") !=
        std::string::npos);
  CHECK(out.str().find("layer 5: max/mean load 1, entropy 1, dead experts 0, slots per expert 1 1 1 1\n") !=
        std::string::npos);
}

TEST_CASE("a report prints as a table") {
  std::ostringstream out;
  out << mo::loss_report<spec>({record(1.5, 4, 0.5)});
  std::string const text = out.str();
  CHECK(text.find("load_balance    micro_batch            1.5          0.75") != std::string::npos);
  CHECK(text.find("router_z") != std::string::npos);
  CHECK(text.find("7 tokens, 1 masked") != std::string::npos);
  CHECK(text.find("max/mean load") != std::string::npos);
}

TEST_CASE("layers are printed by their numbers in the model") {
  std::ostringstream out;
  mo::loss_report<spec> const report({record(1.5, 4, 0.5), record(1, 4, 0.5)}, {2, 5});
  CHECK(report.number(0) == 2);
  CHECK(report.number(1) == 5);
  CHECK_THROWS_AS(report.number(2), std::out_of_range);
  out << report << mo::loss_report<spec>({record(1, 4, 0.5)}, {7});
  for (char const* line : {"layer 2: max/mean", "layer 5: max/mean", "layer 7: max/mean"})
    CHECK(out.str().find(line) != std::string::npos);
  CHECK(mo::loss_report<spec>({record(1, 4, 0.5), record(1, 4, 0.5)}).number(1) == 1);
}

TEST_CASE("the column of names is as wide as the longest") {
  struct grouped : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 4}> {
    using router = mo::router<mo::softmax, mo::top_k<2>>;
    using losses = mo::losses<mo::communication_balance<2, 1>, mo::load<>>;
  };
  std::ostringstream out;
  out << mo::loss_report<grouped>({mo::layer_record<grouped>()});
  CHECK(out.str().find("communication_balance  micro_batch              0             0\n") != std::string::npos);
  CHECK(out.str().find("load                   micro_batch              0             0\n") != std::string::npos);
}
