// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/adamw.hpp>

#include "thread_ranks.hpp"

#include <moiety/backend/host.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

template <class T> struct one_tensor {
  std::vector<T> weights;
  std::vector<mo::sum_t<T>> gradients;
  bool decays = true;
  std::string name = "w";

  template <class F> void operator()(F const& f) const {
    auto& self = const_cast<one_tensor&>(*this);
    f(mo::trained_tensor<T>{name, self.weights, self.gradients, mo::replicated::stage, decays});
  }
};

template <class Optimiser> std::map<std::string, std::vector<double>> states_of(Optimiser& optimiser) {
  std::map<std::string, std::vector<double>> all;
  optimiser.for_each_state([&](auto const& s) {
    all[std::string(s.tensor) + ' ' + std::string(s.kind)].assign(s.values.begin(), s.values.end());
  });
  return all;
}

}  // namespace

TEST_CASE("threads of a context take the same step, to the bit") {
  auto const after = [](auto element, auto const& step) {
    using T = decltype(element);
    one_tensor<T> p{};
    for (double const w : ranks::normals<double>(20001, 3)) p.weights.push_back(static_cast<T>(static_cast<float>(w)));
    p.gradients = ranks::normals<mo::sum_t<T>>(20001, 4);
    mo::adamw<mo::sum_t<T>> optimiser;
    for (int t = 0; t < 3; ++t) CHECK(step(optimiser, p));
    auto all = states_of(optimiser);
    for (T const w : p.weights) all["w"].push_back(static_cast<double>(static_cast<float>(w)));
    return all;
  };
  auto const here = [](auto& optimiser, auto const& p) { return optimiser.step(p, 0.1, 1); };
  for (int const threads : {1, 2, 5}) {
    mo::host_engine engine{mo::host{.threads = threads}};
    auto const spread = [&](auto& optimiser, auto const& p) { return optimiser.step(p, 0.1, 1, engine); };
    CHECK(after(float{}, here) == after(float{}, spread));
    CHECK(after(mo::bf16{}, here) == after(mo::bf16{}, spread));
  }
}

TEST_CASE("steps have the published formula, with and without decay") {
  mo::adamw_options const o{.beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.2};
  for (bool const decays : {true, false}) {
    one_tensor<double> p{ranks::normals<double>(50, 1), {}, decays};
    auto w = p.weights;
    std::vector<double> m(50), v(50);
    mo::adamw<double> optimiser(o);
    for (int t = 1; t <= 12; ++t) {
      p.gradients = ranks::normals<double>(50, 100u + static_cast<unsigned>(t));
      double const rate = 0.1 / t;
      CHECK(optimiser.step(p, rate, 1));
      for (std::size_t i = 0; i < w.size(); ++i) {
        double const g = p.gradients[i];
        m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
        v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
        double const m_hat = m[i] / (1 - std::pow(o.beta1, t)), v_hat = v[i] / (1 - std::pow(o.beta2, t));
        w[i] -= rate * (m_hat / (std::sqrt(v_hat) + o.epsilon) + (decays ? o.weight_decay * w[i] : 0));
        CHECK(p.weights[i] == doctest::Approx(w[i]).epsilon(1e-12));
      }
    }
    CHECK(optimiser.steps() == 12);
  }
}

TEST_CASE("the first step is one rate against the sign of the gradient") {
  one_tensor<float> p{{1, 1, 1}, {1e-3f, -4, 0}};
  mo::adamw<float> optimiser({.weight_decay = 0});
  CHECK(optimiser.step(p, 0.125, 4));
  CHECK(p.weights[0] == doctest::Approx(0.875f));
  CHECK(p.weights[1] == doctest::Approx(1.125f));
  CHECK(p.weights[2] == 1);
}

TEST_CASE("powers of many steps are right") {
  for (std::int64_t const t : {0, 1, 2, 3, 10, 1000, 123456})
    CHECK(mo::detail::power(0.999, t) == doctest::Approx(std::pow(0.999, static_cast<double>(t))).epsilon(1e-10));
  CHECK(mo::detail::power(0.9, std::int64_t{1} << 40) == 0);
}

TEST_CASE("weights of 16 bits follow a master copy that keeps what they cannot hold") {
  one_tensor<mo::bf16> p{std::vector<mo::bf16>(3, mo::bf16(1.0f)), {1, 1, 1}};
  mo::adamw<float> optimiser({.weight_decay = 0});
  CHECK(optimiser.step(p, 1e-3, 1));
  CHECK(static_cast<float>(p.weights[0]) == 1.0f);  // 0.999 rounds to 1 in bf16
  for (int t = 0; t < 3; ++t) optimiser.step(p, 1e-3, 1);
  CHECK(static_cast<float>(p.weights[0]) == static_cast<float>(mo::bf16(0.996f)));
  CHECK(states_of(optimiser).at("w master")[0] == doctest::Approx(0.996));
}

TEST_CASE("a norm that is not finite changes nothing") {
  one_tensor<float> p{ranks::normals<float>(20, 5), ranks::normals<float>(20, 6)};
  mo::adamw<float> optimiser;
  for (double const norm : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    auto const weights = p.weights;
    CHECK_FALSE(optimiser.step(p, 0.1, norm));  // before the first step, then after it
    CHECK(p.weights == weights);
    CHECK(optimiser.step(p, 0.1, 1));
    auto const after = p.weights;
    auto const states = states_of(optimiser);
    auto const steps = optimiser.steps();
    p.gradients[3] = std::numeric_limits<float>::quiet_NaN();
    CHECK_FALSE(optimiser.step(p, 0.1, norm));
    CHECK(p.weights == after);
    CHECK(states_of(optimiser) == states);
    CHECK(optimiser.steps() == steps);
    p.gradients[3] = 1;
  }
}

TEST_CASE("a state that is filled again goes on with the same bits") {
  one_tensor<mo::fp16> p{std::vector<mo::fp16>(9, mo::fp16(0.5f)), ranks::normals<float>(9, 7)};
  mo::adamw<float> optimiser;
  for (int t = 0; t < 5; ++t) optimiser.step(p, 1e-2, 1);
  auto const saved = states_of(optimiser);
  auto q = p;
  mo::adamw<float> other;
  other.prepare(q);
  other.for_each_state([&](mo::optimiser_state<float> const& s) {
    CHECK(s.size == 9);
    CHECK(s.range.first == 0);
    auto const& values = saved.at(std::string(s.tensor) + ' ' + std::string(s.kind));
    for (std::size_t i = 0; i < values.size(); ++i) s.values[i] = static_cast<float>(values[i]);
  });
  other.resume(optimiser.steps());
  CHECK(saved.size() == 3);
  optimiser.step(p, 1e-2, 1);
  other.step(q, 1e-2, 1);
  CHECK(states_of(other) == states_of(optimiser));
}

TEST_CASE("other parameters than before are an error, and nothing is written") {
  one_tensor<float> p{{1, 2}, {1, 1}};
  mo::adamw<float> optimiser;
  optimiser.step(p, 0.1, 1);
  auto const states = states_of(optimiser);
  one_tensor<float> longer{{1, 2, 3}, {1, 1, 1}}, renamed{{1, 2}, {1, 1}, true, "v"}, unfit{{1, 2}, {1}};
  CHECK_THROWS_AS(optimiser.step(longer, 0.1, 1), mo::state_error);
  CHECK_THROWS_AS(optimiser.step(renamed, 0.1, 1), mo::state_error);
  CHECK_THROWS_AS(optimiser.step(unfit, 0.1, 1), mo::data_error);
  CHECK_THROWS_AS(optimiser.step([](auto const&) {}, 0.1, 1), mo::state_error);
  CHECK_THROWS_AS(optimiser.step([&](auto const& f) { p(f), renamed(f); }, 0.1, 1), mo::state_error);
  CHECK(states_of(optimiser) == states);
  CHECK(optimiser.steps() == 1);
  CHECK(longer.weights == std::vector<float>{1, 2, 3});
}

TEST_CASE("an optimiser that began with no tensor gets none later") {
  one_tensor<float> p{{1, 2}, {1, 1}};
  auto const none = [](auto const&) {};
  mo::adamw<float> optimiser;
  CHECK(optimiser.step(none, 0.1, 1));
  CHECK_THROWS_AS(optimiser.step(p, 0.1, 1), mo::state_error);
  CHECK(p.weights == std::vector<float>{1, 2});
  CHECK(optimiser.step(none, 0.1, 1));
  CHECK(optimiser.steps() == 2);
}

TEST_CASE("options that can never work are refused") {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  for (mo::adamw_options const& wrong : {mo::adamw_options{.beta1 = 1},
                                         {.beta1 = -0.1},
                                         {.beta2 = 1},
                                         {.beta2 = nan},
                                         {.epsilon = 0},
                                         {.epsilon = nan},
                                         {.weight_decay = -1},
                                         {.weight_decay = nan}})
    CHECK_THROWS_AS(mo::adamw<float>{wrong}, mo::config_error);
  mo::adamw<float> optimiser;
  CHECK_THROWS_AS(optimiser.step(one_tensor<float>{}, nan, 1), mo::config_error);
  CHECK_THROWS_AS(optimiser.step(one_tensor<float>{}, -1, 1), mo::config_error);
  CHECK_THROWS_AS(optimiser.resume(-1), mo::config_error);
}
