// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/math.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace mo = moiety;

namespace {

/// |got − exact| in units of the last place of the exact value.
template <class S> double units(S got, long double exact) {
  S const rounded = std::abs(static_cast<S>(exact));
  long double const unit = std::nextafter(rounded, std::numeric_limits<S>::infinity()) - rounded;
  return static_cast<double>(std::abs(static_cast<long double>(got) - exact) / unit);
}

template <class S> struct limits;
template <> struct limits<float> { static constexpr float lowest = -87.0f, highest = 88.7f; };
template <> struct limits<double> { static constexpr double lowest = -708.0, highest = 709.7; };

}  // namespace

TEST_CASE_TEMPLATE("exp and log are within 2 units in the last place", S, float, double) {
  std::mt19937_64 words(3);
  std::uniform_real_distribution<S> any(limits<S>::lowest, limits<S>::highest), near(-1, 1);
  double worst_exp = 0, worst_log = 0;
  for (int i = 0; i < 200000; ++i) {
    S const v = i % 2 == 0 ? any(words) : near(words);
    worst_exp = std::max(worst_exp, units(mo::exp(v), std::exp(static_cast<long double>(v))));
    S const positive = std::exp(any(words));
    worst_log = std::max(worst_log, units(mo::log(positive), std::log(static_cast<long double>(positive))));
  }
  CHECK(worst_exp <= 2);
  CHECK(worst_log <= 2);
}

TEST_CASE_TEMPLATE("exp and log at the edges", S, float, double) {
  S const infinity = std::numeric_limits<S>::infinity();
  CHECK(mo::exp(S{0}) == 1);
  CHECK(mo::exp(infinity) == infinity);
  CHECK(mo::exp(-infinity) == 0);
  CHECK(mo::exp(S{1000}) == infinity);
  CHECK(mo::exp(S{-1000}) == 0);
  CHECK(std::isnan(mo::exp(std::numeric_limits<S>::quiet_NaN())));
  S const tiny = std::is_same_v<S, float> ? S(-100) : S(-740);  // a denormal result
  CHECK(std::abs(mo::exp(tiny) - std::exp(tiny)) <= 2 * std::numeric_limits<S>::denorm_min());
  CHECK(mo::exp(tiny) > 0);
  CHECK(mo::log(S{1}) == 0);
  CHECK(mo::log(S{0}) == -infinity);
  CHECK(mo::log(infinity) == infinity);
  CHECK(std::isnan(mo::log(S{-1})));
  CHECK(std::isnan(mo::log(std::numeric_limits<S>::quiet_NaN())));
  CHECK(mo::log(std::numeric_limits<S>::denorm_min()) ==
        doctest::Approx(std::log(std::numeric_limits<S>::denorm_min())));
}

TEST_CASE_TEMPLATE("log1p is within 2 units in the last place from denormals to the largest numbers", S, float,
                   double) {
  using numbers = std::numeric_limits<S>;
  std::mt19937_64 words(5);
  std::uniform_real_distribution<S> mantissa(1, 2), near_branch(S(0.25), S(1.5));
  std::uniform_int_distribution<int> exponent(numbers::min_exponent - numbers::digits, numbers::max_exponent - 1);
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    S v = std::ldexp(mantissa(words), exponent(words));
    if (i % 4 == 1) v = near_branch(words);
    if (i % 4 == 2) v = std::ldexp(mantissa(words), exponent(words) % 64);
    worst = std::max(worst, units(mo::log1p(v), std::log1p(static_cast<long double>(v))));
  }
  CHECK(worst <= 2);
  for (S const v : {S(0.375), std::nextafter(S(0.375), S(1)), numbers::min(), numbers::max()})
    CHECK(units(mo::log1p(v), std::log1p(static_cast<long double>(v))) <= 2);
  CHECK(mo::log1p(S{0}) == 0);
  CHECK(mo::log1p(numbers::denorm_min()) == numbers::denorm_min());
  CHECK(mo::log1p(numbers::infinity()) == numbers::infinity());
  CHECK(std::isnan(mo::log1p(numbers::quiet_NaN())));
}

TEST_CASE("exp has the same bits in a vector loop and alone") {
  float in[67], out[67];
  for (int i = 0; i < 67; ++i) in[i] = static_cast<float>(i) * 1.3f - 40;
  for (int i = 0; i < 67; ++i) out[i] = mo::exp(in[i]);
  for (int i = 0; i < 67; ++i) {
    float volatile alone = in[i];
    CHECK(mo::exp(static_cast<float>(alone)) == out[i]);
  }
}

TEST_CASE_TEMPLATE("logistic is 1 / (1 + exp(-v)), or 0 where that is no normal number", S, float, double) {
  using numbers = std::numeric_limits<S>;
  auto const wanted = [](S v) {
    S const divisor = 1 + mo::exp(-v);
    return 1 / divisor < numbers::min() ? S{0} : 1 / divisor;
  };
  std::mt19937_64 words(6);
  S const widest = numbers::max_exponent;
  std::uniform_real_distribution<S> any(-widest, widest), near(-2, 2);
  for (int i = 0; i < 100000; ++i) {
    S const v = i % 2 == 0 ? any(words) : near(words);
    REQUIRE(mo::logistic(v) == wanted(v));
  }
  S const edge = std::log(numbers::min());
  for (S v = edge - 2; v < edge + 2; v += S(0.001)) REQUIRE(mo::logistic(v) == wanted(v));
  for (S v = -edge - 2; v < -edge + 3; v += S(0.001)) REQUIRE(mo::logistic(v) == 1);
  for (S const v : {numbers::infinity(), -numbers::infinity(), S{0}, -S{0}, numbers::denorm_min()})
    CHECK(mo::logistic(v) == wanted(v));
  CHECK(std::isnan(mo::logistic(numbers::quiet_NaN())));
}

TEST_CASE("logistic, fma, is_finite") {
  CHECK(mo::logistic(0.0) == 0.5);
  CHECK(mo::logistic(-1e9) == 0);
  CHECK(mo::logistic(1e9f) == 1);
  CHECK(mo::logistic(1.0) == doctest::Approx(.7310585786300049));
  CHECK(mo::fma(2.0, 3.0, 4.0) == 10);
#if MOIETY_HAS_FMA
  CHECK(mo::fma(1 + 0x1p-30, 1 - 0x1p-30, -1.0) == -0x1p-60);
#endif
  CHECK(mo::is_finite(1.0f));
  CHECK_FALSE(mo::is_finite(std::numeric_limits<float>::infinity()));
  CHECK_FALSE(mo::is_finite(std::numeric_limits<double>::quiet_NaN()));
  CHECK(mo::erf(0.5) == std::erf(0.5));
  CHECK(mo::sqrt(2.0f) == std::sqrt(2.0f));
}
