// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/e4m3.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace mo = moiety;

namespace {

mo::e4m3 of_bits(int bits) {
  mo::e4m3 value;
  value.bits = static_cast<std::uint8_t>(bits);
  return value;
}

/// By the specification's formula, in double.
double value_of(int bits) {
  int const exponent = bits >> 3 & 15, fraction = bits & 7;
  double const magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(1 + fraction / 8.0, exponent - 7);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

/// The nearest of all finite values of the sign, ties to the even bits.
int nearest(double value) {
  int const sign = std::signbit(value) ? 0x80 : 0;
  int best = sign;
  for (int bits = sign; bits < sign + 0x7f; ++bits) {
    double const miss = std::abs(value_of(bits) - value), least = std::abs(value_of(best) - value);
    if (miss < least || (miss == least && bits % 2 == 0)) best = bits;
  }
  return best;
}

}  // namespace

TEST_CASE("every value of 8 bits is the specification's, and goes to float and back") {
  for (int bits = 0; bits < 256; ++bits) {
    auto const wide = static_cast<float>(of_bits(bits));
    if ((bits & 0x7f) == 0x7f) {
      CHECK(std::isnan(wide));
      CHECK(std::isnan(static_cast<float>(mo::e4m3(wide))));
    } else {
      CHECK(static_cast<double>(wide) == value_of(bits));
      CHECK(mo::e4m3(wide).bits == bits);
    }
  }
  CHECK(static_cast<float>(of_bits(0x7e)) == mo::e4m3::largest);
  CHECK(std::isnan(static_cast<float>(mo::e4m3::nan())));
}

TEST_CASE("rounding to e4m3 is to the nearest, ties to even") {
  std::mt19937 words(std::random_device{}());
  std::uniform_real_distribution<float> exponent(-13, 9), fraction(1, 2);
  for (int i = 0; i < 20000; ++i) {
    float const value = std::ldexp(fraction(words), static_cast<int>(exponent(words))) * (i % 2 == 0 ? 1 : -1);
    INFO(value);
    REQUIRE(mo::e4m3(value).bits == nearest(static_cast<double>(value)));
  }
  for (int bits = 0; bits < 0x7e; ++bits) {  // halfway between neighbours
    double const half = (value_of(bits) + value_of(bits + 1)) / 2;
    CHECK(mo::e4m3(static_cast<float>(half)).bits == bits + bits % 2);
    CHECK(mo::e4m3(std::nextafter(static_cast<float>(half), 0.0f)).bits == bits);
    CHECK(mo::e4m3(std::nextafter(static_cast<float>(half), 1e9f)).bits == bits + 1);
    CHECK(mo::e4m3(static_cast<float>(-half)).bits == ((bits + bits % 2) | 0x80));
  }
}

TEST_CASE("what is beyond 448 becomes 448, NaN stays NaN, signs stay") {
  float const infinity = std::numeric_limits<float>::infinity();
  for (float const beyond : {448.0f, 449.0f, 464.0f, 480.0f, 1e30f, infinity}) {
    CHECK(static_cast<float>(mo::e4m3(beyond)) == 448.0f);
    CHECK(static_cast<float>(mo::e4m3(-beyond)) == -448.0f);
  }
  CHECK(std::isnan(static_cast<float>(mo::e4m3(std::bit_cast<float>(0x7f800001u)))));
  CHECK(mo::e4m3(0.0f).bits == 0);
  CHECK(mo::e4m3(-0.0f).bits == 0x80);
  CHECK(mo::e4m3(-0x1p-30f).bits == 0x80);
  static_assert(static_cast<float>(mo::e4m3(1.06f)) == 1.0f);
}
