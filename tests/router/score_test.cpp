// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/score.hpp>

#include "router/example.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

struct no_backward {
  void forward(mo::score_row auto&) const {}
};
struct tempered : mo::softmax {
  static constexpr bool rows_are_probabilities = false;
};

std::vector<double> scored(auto const& rule, std::vector<double> z) {
  mo::span_row<double> row(z.data(), static_cast<std::int64_t>(z.size()));
  rule.forward(row);
  return z;
}

/// The gradient of Σ c s along every logit against central differences.
void differences_agree(auto const& rule, std::vector<double> const& z = {0.3, -1.2, 2.0, 0.9, -0.1}) {
  std::vector<double> const c{1.0, -2.0, 0.5, 3.0, -0.7};
  std::vector<double> scores = scored(rule, z), gradient = c;
  mo::span_row<double> s(scores.data(), 5), g(gradient.data(), 5);
  rule.backward(s, g);
  for (std::size_t i = 0; i < 5; ++i) {
    auto const at = [&](double step) {
      std::vector<double> moved = z;
      moved[i] += step;
      double sum = 0;
      std::vector<double> const values = scored(rule, moved);
      for (std::size_t j = 0; j < 5; ++j) sum += c[j] * values[j];
      return sum;
    };
    CHECK(gradient[i] == doctest::Approx((at(1e-5) - at(-1e-5)) / 2e-5).epsilon(1e-8));
  }
}

/// One logit as a score, and the slope there.
template <class S> S scored_in(auto const& rule, S z) {
  mo::span_row<S> row(&z, 1);
  rule.forward(row);
  return z;
}
template <class S> S slope_in(auto const& rule, S score) {
  S gradient = 1;
  mo::span_row<S> scores(&score, 1), row(&gradient, 1);
  rule.backward(scores, row);
  return gradient;
}

}  // namespace

static_assert(mo::score_rule<mo::softmax> && mo::score_rule<mo::sigmoid> && mo::score_rule<tempered>);
static_assert(!mo::score_rule<no_backward> && !mo::score_rule<int>);
static_assert(mo::rows_are_probabilities<mo::softmax> && !mo::rows_are_probabilities<mo::sigmoid>);
static_assert(!mo::rows_are_probabilities<tempered>);

TEST_CASE("softmax of the worked example") {
  auto const z = example::make_logits<double>();
  auto const row = [&](std::int64_t t) { return scored(mo::softmax{}, {z.row(t), z.row(t) + 4}); };
  double const expected[3][4] = {
      {.643914, .236883, .087144, .032059}, {.473991, .174371, .287490, .064148}, {.078394, .579259, .213097, .129250}};
  for (std::int64_t t = 0; t < 3; ++t)
    for (std::size_t e = 0; e < 4; ++e) CHECK(std::abs(row(t)[e] - expected[t][e]) < 1e-6);
  double const fourth[4] = {.109518, .066426, .809234, .014822};
  for (std::size_t e = 0; e < 4; ++e) CHECK(std::abs(row(4)[e] - fourth[e]) < 1e-6);
}

TEST_CASE("softmax does not overflow, and does not move with a constant") {
  CHECK(scored(mo::softmax{}, {1e30, 1e30, 0}) == std::vector<double>{0.5, 0.5, 0});
  CHECK(scored(mo::softmax{}, {-1e300, -1e300}) == std::vector<double>{0.5, 0.5});
  CHECK(scored(mo::softmax{}, {5}) == std::vector<double>{1});
  CHECK(scored(mo::softmax{}, {1, 3, 2}) == scored(mo::softmax{}, {1 + 8, 3 + 8, 2 + 8}));
}

TEST_CASE("sigmoid is that of each logit, and saturates") {
  auto const s = scored(mo::sigmoid{}, {0, 1, -1, 1000, -1000});
  CHECK(s[0] == 0.5);
  CHECK(s[1] == doctest::Approx(1 / (1 + std::exp(-1.0))));
  CHECK(s[1] + s[2] == doctest::Approx(1));
  CHECK(s[3] == 1);
  CHECK(s[4] == 0);
}

TEST_CASE("gradients equal differences") {
  differences_agree(mo::softmax{});
  differences_agree(mo::sigmoid{});
  differences_agree(mo::raw_logits{});
  differences_agree(mo::sqrt_softplus{});
  differences_agree(mo::sqrt_softplus{}, {-2.6, -2.8, -3.1, 5.0, 12.0});  // on either side of where its series begins
  differences_agree(mo::sqrt_softplus{}, {-6.0, -9.0, -11.0, 20.0, 30.0});
}

TEST_CASE_TEMPLATE("sqrt_softplus is the root of log(1 + exp z) at any size of z", S, float, double) {
  S const accurate = 8 * std::numeric_limits<S>::epsilon();
  for (S const z : {S(-80), S(-40), S(-5), S(-1e-4), S(0), S(1e-40), S(0.3), S(2), S(40), S(1e3), S(1e30)}) {
    CAPTURE(z);
    long double const exact =
        std::sqrt(std::log1p(std::exp(-std::abs(static_cast<long double>(z)))) + std::max(z, S(0)));
    CHECK(std::abs(static_cast<long double>(scored_in<S>(mo::sqrt_softplus{}, z)) - exact) <= exact * accurate);
  }
  for (S const z : {S(-1e3), S(-1e30), -std::numeric_limits<S>::max(), -std::numeric_limits<S>::infinity()})
    CHECK(scored_in<S>(mo::sqrt_softplus{}, z) == 0);
  CHECK(std::isfinite(scored_in<S>(mo::sqrt_softplus{}, std::numeric_limits<S>::max())));
}

TEST_CASE_TEMPLATE("the slope of sqrt_softplus is finite at any size of z, and half the score where that is small", S,
                   float, double) {
  for (S const z : {S(-1e30), S(-1e3), S(-100), S(-80), S(-20), S(0), S(20), S(1e3), S(1e30)}) {
    CAPTURE(z);
    S const s = scored_in<S>(mo::sqrt_softplus{}, z);
    S const slope = slope_in<S>(mo::sqrt_softplus{}, s);
    long double const l = s, exact = s > 0 ? -std::expm1(-l * l) / (2 * l) : 0;
    CHECK(std::abs(static_cast<long double>(slope) - exact) <= exact * 8 * std::numeric_limits<S>::epsilon());
  }
  S const least = std::numeric_limits<S>::denorm_min(), small = std::numeric_limits<S>::min();
  CHECK(slope_in<S>(mo::sqrt_softplus{}, small) == small / 2);
  CHECK(slope_in<S>(mo::sqrt_softplus{}, 2 * least) == least);
  CHECK(slope_in<S>(mo::sqrt_softplus{}, S{0}) == 0);
}

TEST_CASE_TEMPLATE("the slope of sqrt_softplus has no step where its series ends", S, float, double) {
  for (S const s : {S(0.2), std::nextafter(S(0.25), S(0)), S(0.25), std::nextafter(S(0.25), S(1)), S(0.3)}) {
    long double const l = s, exact = -std::expm1(-l * l) / (2 * l);
    CHECK(std::abs(static_cast<long double>(slope_in<S>(mo::sqrt_softplus{}, s)) - exact) <=
          exact * 16 * std::numeric_limits<S>::epsilon());
  }
}

TEST_CASE("raw logits are left as they are, and have no probabilities") {
  CHECK(scored(mo::raw_logits{}, {-3, 0, 1e30}) == std::vector<double>{-3, 0, 1e30});
  static_assert(!mo::has_probabilities<mo::raw_logits> && !mo::rows_are_probabilities<mo::raw_logits>);
  static_assert(mo::has_probabilities<mo::sqrt_softplus> && !mo::rows_are_probabilities<mo::sqrt_softplus>);
  static_assert(mo::has_probabilities<mo::softmax> && mo::has_probabilities<mo::sigmoid>);
}
