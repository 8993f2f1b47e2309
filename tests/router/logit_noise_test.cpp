// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/logit_noise.hpp>

#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include "properties/float_gradients.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ratio>
#include <sstream>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

template <class... Roles> struct of : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 5, .experts = 5}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, Roles...>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
using noisy = of<mo::logit_noise>;
using constant = of<mo::constant_logit_noise<std::ratio<1, 2>>>;

struct in_double : mo::deployment<> {
  using element = double;
};

/// A layer of a spec whose noise is drawn by a key, with weights in which nothing is 0.
template <class Spec> struct example {
  using layer_type = mo::moe_layer<Spec, in_double>;
  using role = std::decay_t<decltype(typename Spec::router{}.noise())>;
  mo::context<in_double> ctx;
  layer_type layer;
  typename layer_type::weights_type weights;
  mo::matrix<double> x{20, 6}, y{20, 6};

  explicit example(int key = 1)
      : layer(ctx, {.router = {role{.key = mo::seed{key}}}}), weights(layer.make_weights(mo::seed{1})) {
    weights.for_each([](mo::parameter const& p, auto values) {
      for (std::size_t i = 0; p.name == "router.noise" && i < values.size(); ++i)
        values[i] = mo::normal(mo::seed{5}, 0, i);
    });
    mo::fill_normal(ctx, x, mo::seed{2});
  }

  /// z̃ of some tokens.
  std::vector<double> logits(std::int64_t first, std::int64_t count, std::int64_t step = 0, std::int64_t number = 0) {
    auto const tape = layer.forward(weights, x.rows(first, count), y.rows(first, count),
                                    {.first_row = first, .step = step, .layer = number});
    return {tape.logits().data(), tape.logits().data() + count * 5};
  }
};

double dot(double const* a, double const* b) {
  double sum = 0;
  for (int i = 0; i < 6; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

TEST_CASE("the deviation is log(1 + exp a) + floor, without overflow, and its slope the logistic function") {
  mo::logit_noise const noise{.floor = 0.25f};
  CHECK(noise.deviation(0.0) == doctest::Approx(std::log(2) + 0.25));
  CHECK(noise.deviation(1.5) == doctest::Approx(std::log1p(std::exp(1.5)) + 0.25));
  CHECK(noise.deviation(-800.0) == 0.25);
  CHECK(noise.deviation(800.0) == 800.25);
  CHECK(noise.slope(0.0) == 0.5);
  for (double const a : {-3.0, 0.1, 7.0})
    CHECK(noise.slope(a) == doctest::Approx((noise.deviation(a + 1e-6) - noise.deviation(a - 1e-6)) / 2e-6));
  CHECK(mo::constant_logit_noise<std::ratio<1, 8>>{}.deviation(3.0) == 0.125);
  CHECK(mo::logit_noise{}.floor == 1e-2f);
}

TEST_CASE("draws are standard normal, and differ by key, step, token and expert") {
  mo::logit_noise const noise{.key = mo::seed{3}};
  double sum = 0, square = 0;
  for (std::int64_t t = 0; t < 500; ++t)
    for (std::int64_t e = 0; e < 40; ++e) {
      double const v = noise.draw<double>(t, 2, e, 40);
      sum += v, square += v * v;
    }
  CHECK(std::abs(sum / 20000) < 4 / std::sqrt(20000));
  CHECK(std::abs(square / 20000 - 1) < 4 * std::sqrt(2.0 / 20000));
  double const one = noise.draw<double>(7, 2, 3, 40);
  CHECK(one == mo::normal(mo::seed{3}, mo::stream_of("router.logit_noise") + 2, 7 * 40 + 3));
  CHECK(one != noise.draw<double>(8, 2, 3, 40));
  CHECK(one != noise.draw<double>(7, 3, 3, 40));
  CHECK(one != noise.draw<double>(7, 2, 4, 40));
  CHECK(one != mo::logit_noise{.key = mo::seed{4}}.draw<double>(7, 2, 3, 40));
  CHECK(one == mo::constant_logit_noise<>{.key = mo::seed{3}}.draw<double>(7, 2, 3, 40));
}

TEST_CASE("forward routes by x W + noise, infer by x W alone") {
  example<noisy> e;
  auto const tape = e.layer.forward(e.weights, e.x, e.y, {.first_row = 100, .step = 4});
  mo::logit_noise const noise{.key = mo::seed{1}};
  mo::matrix<double> z(20, 5);
  for (std::int64_t t = 0; t < 20; ++t)
    for (std::int64_t i = 0; i < 5; ++i) {
      z(t, i) = dot(e.x.row(t), e.weights.router().row(i));
      double const a = dot(e.x.row(t), e.weights.router_noise().row(i));
      CHECK(tape.noise_logits()(t, i) == doctest::Approx(a));
      CHECK(tape.logits()(t, i) ==
            doctest::Approx(z(t, i) + noise.draw<double>(100 + t, 4, i, 5) * (std::log1p(std::exp(a)) + 0.01)));
    }
  mo::matrix<double> inferred(20, 6), plain(20, 6);
  e.layer.infer(e.weights, e.x, inferred, {.first_row = 100, .step = 4});
  using quiet = mo::moe_layer<of<>, in_double>;
  quiet const without{e.ctx};
  auto const same = without.make_weights(mo::seed{1});  // names are streams, so they are those of e
  without.forward(same, e.x, plain);
  CHECK(std::vector<double>(inferred.begin(), inferred.end()) == std::vector<double>(plain.begin(), plain.end()));
  CHECK(std::vector<double>(inferred.begin(), inferred.end()) != std::vector<double>(e.y.begin(), e.y.end()));
}

TEST_CASE("constant noise has no parameter, and no logits of its own") {
  example<constant> e;
  auto const tape = e.layer.forward(e.weights, e.x, e.y);
  mo::constant_logit_noise<> const noise{.key = mo::seed{1}};
  for (std::int64_t t = 0; t < 20; ++t)
    for (std::int64_t i = 0; i < 5; ++i)
      CHECK(tape.logits()(t, i) ==
            doctest::Approx(dot(e.x.row(t), e.weights.router().row(i)) + 0.5 * noise.draw<double>(t, 0, i, 5)));
  CHECK(tape.noise_logits().rows() == 0);
  CHECK(mo::parameters<constant> == mo::parameters<of<>>);
  CHECK(mo::forward_flops<constant>(mo::tokens{1}) == mo::forward_flops<of<>>(mo::tokens{1}));
}

TEST_CASE_TEMPLATE("noise does not depend on how the batch is cut, and differs by step, layer and key", Spec, noisy,
                   constant) {
  example<Spec> e;
  auto const whole = e.logits(0, 20);
  auto cut = e.logits(0, 7);
  for (double const v : e.logits(7, 13)) cut.push_back(v);
  CHECK(cut == whole);
  CHECK(e.logits(0, 20, 1) != whole);
  CHECK(e.logits(0, 20, 0, 1) != whole);
  CHECK(e.logits(0, 20, 0, 1) != e.logits(0, 20, 1));
  CHECK(e.logits(7, 13, 0, 1) != e.logits(7, 13, 0, 2));
  CHECK(example<Spec>(2).logits(0, 20) != whole);
  CHECK(e.logits(0, 20) == whole);
}

TEST_CASE("the parameter starts at 0, where the deviation is log 2 + floor") {
  mo::context<> ctx;
  mo::moe_layer<noisy> const layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  std::vector<std::string> names;
  mo::for_each_parameter(weights, [&](mo::parameter const& p, auto values) {
    names.push_back(p.name);
    if (p.name != "router.noise") return;
    CHECK(p.shape == std::vector<std::int64_t>{5, 6});
    CHECK(p.type == "float");
    CHECK(p.trained);
    for (auto const v : values) CHECK(v == 0);
  });
  CHECK(names[0] == "router.weight");
  CHECK(names[1] == "router.noise");
}

TEST_CASE("a second matrix is in the costs and the description") {
  CHECK(mo::parameters<noisy> == mo::parameters<of<>> + 30);
  CHECK(mo::active_parameters<noisy> == mo::active_parameters<of<>> + 30);
  CHECK(mo::forward_flops<noisy>(mo::tokens{7}) == mo::forward_flops<of<>>(mo::tokens{7}) + 2 * 7 * 30);
  CHECK(mo::saved_bytes<noisy>(mo::tokens{64}) == mo::saved_bytes<of<>>(mo::tokens{64}) + 64 * 5 * 4);
  CHECK(mo::describe<noisy>().text.find("logit_noise, softmax") != std::string::npos);
  CHECK(mo::describe<of<>>().text.find("noise") == std::string::npos);
}

TEST_CASE("values that can never work are a config_error") {
  mo::context<> ctx;
  auto const make = [&](float floor) { mo::moe_layer<noisy>{ctx, {.router = {mo::logit_noise{.floor = floor}}}}; };
  CHECK_THROWS_WITH_AS(make(0), "the floor of mo::logit_noise must be finite and above 0, but is 0.", mo::config_error);
  CHECK_THROWS_AS(make(std::numeric_limits<float>::infinity()), mo::config_error);
  using fixed = mo::constant_logit_noise<std::ratio<1, 2>>;
  CHECK_THROWS_WITH_AS((mo::moe_layer<constant>{ctx, {.router = {fixed{.value = -1}}}}),
                       "the value of mo::constant_logit_noise must be finite and above 0, but is -1.",
                       mo::config_error);
}

namespace {

template <class Score, class Weigh, std::int64_t Experts, int K>
struct composed : mo::layer_spec<mo::dims{.hidden = 7, .ffn = 5, .experts = Experts}> {
  using router = mo::router<mo::logit_noise, Score, mo::top_k<K>, Weigh, mo::jitter<>, mo::linear_bias>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

/// Of every score and weight rule that goes with K.
template <std::int64_t Experts, int K, class F> void each_composed(F const& f) {
  f.template operator()<composed<mo::softmax, mo::as_scored, Experts, K>>();
  f.template operator()<composed<mo::sigmoid, mo::as_scored, Experts, K>>();
  if constexpr (K > 1) {
    f.template operator()<composed<mo::softmax, mo::renormalised, Experts, K>>();
    f.template operator()<composed<mo::sigmoid, mo::softmax_of_selected, Experts, K>>();
  }
}

}  // namespace

TEST_CASE("gradients equal differences for every size, score and weight rule, with masks and sequences") {
  std::vector<std::uint8_t> mask(37, 1);
  mask[0] = mask[11] = mask[36] = 0;
  std::vector<std::int64_t> const sequences{0, 11, 11, 12, 30, 37};
  auto const passes = []<class Spec>(std::int64_t tokens, mo::batch const& about) {
    for (mo::testing::gradient_check const& one : mo::testing::check_gradients<Spec>(tokens, about)) {
      CAPTURE(one.name);
      CHECK(one.error <= 1e-6);
    }
    float_gradients::agree<Spec>(tokens, about);
  };
  auto const check = [&]<class Spec>() {
    for (std::int64_t const tokens : {0, 1, 2, 37})
      passes.template operator()<Spec>(tokens, {.first_row = 9, .step = 2, .layer = 3});
    passes.template operator()<Spec>(37, {.sequences = sequences, .mask = mask});
  };
  each_composed<1, 1>(check);
  each_composed<3, 2>(check);
  each_composed<8, 3>(check);
  each_composed<40, 4>(check);
}

TEST_CASE("layers with noise conform") {
  CHECK(mo::testing::conforms<noisy>());
  CHECK(mo::testing::conforms<constant>());
}

TEST_CASE("a token that is not finite has no gradient, and spoils none") {
  mo::context<> ctx;
  mo::moe_layer<noisy> const layer{ctx, {.non_finite = mo::non_finite::sanitise}};
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  mo::matrix<float> x(9, 6), y(9, 6), dy(9, 6), dx(9, 6);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::fill_normal(ctx, dy, mo::seed{3});
  x(4, 2) = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t h = 0; h < 6; ++h) dy(4, h) = 0;
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, dy, dx, gradients);
  gradients.for_each([](mo::parameter const& p, auto values) {
    if (p.name.starts_with("router."))
      for (auto const v : values) CHECK(std::isfinite(v));
  });
  for (std::int64_t h = 0; h < 6; ++h) CHECK(dx(4, h) == 0);
}
