// SPDX-License-Identifier: Apache-2.0
// The number types of a layer: double, float, and the storage types bf16 and fp16.
//
// Storage types hold 16 bits and convert to and from float with round-to-nearest-even; no arithmetic is done in them. A NaN
// stays one; a device, which converts by its own instructions, may give it other bits than the host.
// Every sum over values of T is carried in sum_t<T>: float for float, bf16 and fp16; double for double.
#pragma once

#include <moiety/core/config.hpp>

#include <concepts>
#include <cstdint>
#include <limits>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// std::bit_cast, for host and device.
template <class To, class From> MOIETY_HD constexpr To bit_cast(From const& value) {
  return __builtin_bit_cast(To, value);
}

template <std::floating_point S> inline constexpr S infinity = std::numeric_limits<S>::infinity();
template <std::floating_point S> inline constexpr S largest_finite = std::numeric_limits<S>::max();
template <std::floating_point S> inline constexpr S not_a_number = std::numeric_limits<S>::quiet_NaN();

}  // namespace detail

/// The upper half of an IEEE binary32.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  MOIETY_HD constexpr explicit bf16(float value) : bits(rounded(value)) {}
  MOIETY_HD constexpr operator float() const { return detail::bit_cast<float>(std::uint32_t{bits} << 16); }

 private:
  MOIETY_HD static constexpr std::uint16_t rounded(float value) {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) {
      std::uint16_t nearest;
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(nearest) : "f"(value));
      return nearest;
    }
#endif
    auto const wide = detail::bit_cast<std::uint32_t>(value);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((wide >> 16) | 0x40u);  // quiet NaN
    return static_cast<std::uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
  }
};

/// IEEE binary16.
struct fp16 {
  std::uint16_t bits = 0;

  fp16() = default;
  MOIETY_HD constexpr explicit fp16(float value) : bits(rounded(value)) {}
  MOIETY_HD constexpr operator float() const {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) {
      float wide;
      asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
      return wide;
    }
#endif
    std::uint32_t const sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31u) return detail::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
    if (exponent != 0u) return detail::bit_cast<float>(sign | ((exponent + 112u) << 23) | (fraction << 13));
    float const magnitude = static_cast<float>(fraction) * 0x1p-24f;  // denormal: exact in float
    return sign != 0u ? -magnitude : magnitude;
  }

 private:
  MOIETY_HD static constexpr std::uint16_t rounded(float value) {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) {
      std::uint16_t nearest;
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(nearest) : "f"(value));
      return nearest;
    }
#endif
    auto const wide = detail::bit_cast<std::uint32_t>(value);
    std::uint32_t const sign = (wide >> 16) & 0x8000u, magnitude = wide & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);   // NaN
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // beyond 65504 after rounding
    if (magnitude < 0x38800000u) {  // denormal result: adding 0.5 aligns the last bit, and rounds to even
      float const aligned = detail::bit_cast<float>(magnitude) + 0.5f;
      return static_cast<std::uint16_t>(sign | (detail::bit_cast<std::uint32_t>(aligned) - 0x3f000000u));
    }
    std::uint32_t const nearest = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
    return static_cast<std::uint16_t>(sign | (nearest >> 13));
  }
};

/// The types that matrices of a layer may hold.
template <class T>
concept scalar = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bf16> || std::same_as<T, fp16>;

namespace detail {
template <class T> struct sum_of { using type = float; };
template <> struct sum_of<double> { using type = double; };
}  // namespace detail

/// The type in which sums over T, router weights, logits and gradients are held.
template <scalar T> using sum_t = typename detail::sum_of<T>::type;

template <scalar T> inline constexpr std::string_view name_of = "double";
template <> inline constexpr std::string_view name_of<float> = "float";
template <> inline constexpr std::string_view name_of<bf16> = "bf16";
template <> inline constexpr std::string_view name_of<fp16> = "fp16";

}  // namespace moiety
