// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/numbers.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>

namespace mo = moiety;

namespace {

/// The nearest of all values of a 16-bit type, ties to the even bit pattern, by comparison in double.
template <class T> std::uint16_t nearest(float value, std::uint16_t guess) {
  auto const at = [](std::uint16_t bits) {
    T t;
    t.bits = bits;
    return static_cast<double>(static_cast<float>(t));
  };
  std::uint16_t best = guess;
  for (int step = -2; step <= 2; ++step) {
    auto const other = static_cast<std::uint16_t>(guess + step);
    if (!std::isfinite(at(other)) || std::signbit(at(other)) != std::signbit(static_cast<double>(value))) continue;
    double const miss = std::abs(at(other) - static_cast<double>(value)),
                 least = std::abs(at(best) - static_cast<double>(value));
    if (miss < least || (miss == least && (other & 1) == 0)) best = other;
  }
  return best;
}

template <class T> void check_rounding(float largest) {
  std::mt19937 words(1);
  for (int i = 0; i < 300000; ++i) {
    auto const value = std::bit_cast<float>(static_cast<std::uint32_t>(words()));
    if (!std::isfinite(value) || std::abs(value) > largest) continue;
    REQUIRE(T(value).bits == nearest<T>(value, T(value).bits));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("every 16-bit value goes to float and back", T, mo::bf16, mo::fp16) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    T value;
    value.bits = static_cast<std::uint16_t>(bits);
    auto const wide = static_cast<float>(value);
    if (std::isnan(wide))
      REQUIRE(std::isnan(static_cast<float>(T(wide))));
    else
      REQUIRE(T(wide).bits == value.bits);
  }
}

TEST_CASE("rounding is to the nearest, ties to even") {
  check_rounding<mo::bf16>(3.3e38f);
  check_rounding<mo::fp16>(65504.0f);
  CHECK(static_cast<float>(mo::bf16(1.00390625f)) == 1.0f);       // 1 + half a unit
  CHECK(static_cast<float>(mo::bf16(1.01171875f)) == 1.015625f);  // 1 + one and a half
  CHECK(static_cast<float>(mo::bf16(257.0f)) == 256.0f);
  CHECK(static_cast<float>(mo::bf16(1001.0f)) == 1000.0f);  // counts do not survive in 16 bits
  CHECK(static_cast<float>(mo::bf16(4099.0f)) == 4096.0f);
  CHECK(static_cast<float>(mo::fp16(2049.0f)) == 2048.0f);
  CHECK(static_cast<float>(mo::fp16(0x1p-24f)) == 0x1p-24f);
  CHECK(static_cast<float>(mo::fp16(0x1p-25f)) == 0.0f);
  CHECK(static_cast<float>(mo::fp16(0x1.8p-25f)) == 0x1p-24f);
}

TEST_CASE("too large a value is infinity, NaN stays NaN, signs stay") {
  float const infinity = std::numeric_limits<float>::infinity();
  CHECK(static_cast<float>(mo::bf16(3.4e38f)) == infinity);
  CHECK(static_cast<float>(mo::fp16(65519.0f)) == 65504.0f);
  CHECK(static_cast<float>(mo::fp16(65520.0f)) == infinity);
  CHECK(static_cast<float>(mo::fp16(-1e9f)) == -infinity);
  CHECK(std::isnan(static_cast<float>(mo::bf16(std::bit_cast<float>(0x7f800001u)))));
  CHECK(std::isnan(static_cast<float>(mo::fp16(std::bit_cast<float>(0x7f800001u)))));
  CHECK(std::signbit(static_cast<float>(mo::bf16(-0.0f))));
  CHECK(std::signbit(static_cast<float>(mo::fp16(-0.0f))));
}

TEST_CASE("a sum that is carried in bf16 stands still, the sum type does not") {
  mo::bf16 const term(.001f);
  mo::bf16 narrow(1.0f);
  mo::sum_t<mo::bf16> wide = 1;
  for (int i = 0; i < 512; ++i) {
    narrow = mo::bf16(static_cast<float>(narrow) + static_cast<float>(term));
    wide += static_cast<float>(term);
  }
  CHECK(static_cast<float>(narrow) == 1.0f);
  CHECK(std::abs(wide - 1.511719f) < 1e-6f);
}

TEST_CASE("sums of 16-bit types are float, and types have names") {
  CHECK(std::is_same_v<mo::sum_t<mo::bf16>, float>);
  CHECK(std::is_same_v<mo::sum_t<mo::fp16>, float>);
  CHECK(std::is_same_v<mo::sum_t<float>, float>);
  CHECK(std::is_same_v<mo::sum_t<double>, double>);
  CHECK(mo::scalar<mo::bf16>);
  CHECK_FALSE(mo::scalar<int>);
  CHECK(mo::name_of<mo::bf16> == "bf16");
  CHECK(mo::name_of<double> == "double");
}
