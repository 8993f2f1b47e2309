// SPDX-License-Identifier: Apache-2.0
// e4m3: 8 bits that quantised operands of products hold, as OCP's 8-bit floating point specification has them. Not an element
// type of a layer: values need a scale beside them, see kernels/quantise.hpp.
//
//   sign, 4 bits of exponent (bias 7), 3 of fraction     largest 448, least normal 2⁻⁶, denormals in steps of 2⁻⁹
//   no infinities; all ones behind the sign is NaN
//
// From float: to nearest, ties to even; what is beyond 448, infinities too, becomes ±448, and NaN a NaN. To float: exact.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

struct e4m3 {
  std::uint8_t bits = 0;

  static constexpr float largest = 448;

  e4m3() = default;
  MOIETY_HD constexpr explicit e4m3(float value) : bits(rounded(value)) {}
  MOIETY_HD constexpr operator float() const {
    std::uint32_t const sign = (bits & 0x80u) << 24, exponent = (bits >> 3) & 15u, fraction = bits & 7u;
    std::uint32_t const normal = ((exponent + 120u) << 23) | (fraction << 20);
    auto const denormal = detail::bit_cast<std::uint32_t>(static_cast<float>(static_cast<int>(fraction)) * 0x1p-9f);
    std::uint32_t const finite = exponent != 0u ? normal : denormal;
    return detail::bit_cast<float>(sign | ((bits & 0x7fu) == 0x7fu ? 0x7fc00000u : finite));
  }

  /// A NaN, which what is not finite becomes where it is quantised.
  MOIETY_HD static constexpr e4m3 nan() {
    e4m3 value;
    value.bits = 0x7f;
    return value;
  }

 private:
  MOIETY_HD static constexpr std::uint8_t rounded(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    if (!__builtin_is_constant_evaluated()) {
      std::uint16_t pair;
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
      return static_cast<std::uint8_t>(pair);
    }
#endif
    auto const wide = detail::bit_cast<std::uint32_t>(value);
    std::uint32_t const sign = (wide >> 24) & 0x80u, magnitude = wide & 0x7fffffffu;
    // Adding 2¹⁴ aligns the last bit of a denormal result, and rounds to even.
    std::uint32_t const normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - (120u << 23)) >> 20;
    std::uint32_t const denormal =
        detail::bit_cast<std::uint32_t>(detail::bit_cast<float>(magnitude) + 0x1p14f) - 0x46800000u;
    std::uint32_t nearest = magnitude < 0x3c800000u ? denormal : normal;
    nearest = magnitude > 0x43e00000u ? 0x7eu : nearest;  // beyond 448
    nearest = magnitude > 0x7f800000u ? 0x7fu : nearest;
    return static_cast<std::uint8_t>(sign | nearest);
  }
};

}  // namespace moiety
