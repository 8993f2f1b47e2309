// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/normal_cdf.hpp>

#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace mo = moiety;

TEST_CASE("the chance is that of the error function, to 2^-50 in both tails") {
  long double const root_half = std::sqrt(0.5L);
  double worst = 0;
  for (int i = -37 * 64; i <= 37 * 64; ++i)
    for (double const shift : {0.0, 0.0078, 0.0031}) {
      double const v = i / 64.0 + shift;
      long double const wanted = std::erfc(-static_cast<long double>(v) * root_half) / 2;
      auto const error = static_cast<double>(std::abs(static_cast<long double>(mo::normal_cdf(v)) / wanted - 1));
      worst = error > worst ? error : worst;
    }
  CHECK(worst <= 0x1p-50);
}

TEST_CASE("known values, the limits, and what is no number") {
  CHECK(mo::normal_cdf(0) == 0.5);
  CHECK(mo::normal_cdf(1) == doctest::Approx(0.841344746068542949).epsilon(1e-15));
  CHECK(mo::normal_cdf(-6) == doctest::Approx(9.86587645037698141e-10).epsilon(1e-15));
  double const infinity = std::numeric_limits<double>::infinity();
  CHECK(mo::normal_cdf(-infinity) == 0);
  CHECK(mo::normal_cdf(infinity) == 1);
  CHECK(mo::normal_cdf(-40) == 0);
  CHECK(mo::normal_cdf(9) == 1);
  CHECK(std::isnan(mo::normal_cdf(std::nan(""))));
}

TEST_CASE("it undoes the quantile function") {
  for (std::uint32_t word = 0; word < 4000000000u; word += 123456789u) {
    double const p = (static_cast<double>(word) + 0.5) * 0x1p-32;
    CHECK(mo::normal_cdf(mo::normal_of(word)) == doctest::Approx(p).epsilon(1e-14));
  }
}
