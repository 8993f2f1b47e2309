// SPDX-License-Identifier: Apache-2.0
// Elementary functions by fixed arithmetic: the same bits on every machine that has a fused multiply-add, on host and
// device, alone or in a vector loop. float and double; errors are at most 2 units in the last place.
//
//   fma(a, b, c)   a·b + c with one rounding where the machine has it, else with two
//   exp(v)         2^n · e^r with n = round(v / ln 2), |r| ≤ ln 2 / 2, e^r by its Taylor polynomial
//   log(v)         n · ln 2 + 2 atanh((m − 1) / (m + 1)) with v = 2^n · m, m in [√½, √2)
//   log1p(v)       log(1 + v) for v ≥ 0, exact where v is small: 2 atanh(v / (v + 2))
//   logistic(v)    1 / (1 + e^−v), and 0 where that is no normal number
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

namespace moiety::inline MOIETY_ABI {

template <std::floating_point S> MOIETY_HD inline S fma(S a, S b, S c) {
#if MOIETY_HAS_FMA
  if constexpr (std::same_as<S, float>)
    return __builtin_fmaf(a, b, c);
  else
    return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

namespace detail {

/// The constants of exp for one type: bit layout, ln 2 in two parts, and the degree at which Taylor's rest is below ε/4. From
/// lowest to highest results are zero, finite or infinite; from least to most they are normal, and 1 + e^most has no normal
/// reciprocal.
template <class S> struct exp_constants;

template <> struct exp_constants<float> {
  using bits = std::uint32_t;
  static constexpr unsigned mantissa = 23, bias = 127, degree = 7;
  static constexpr float lowest = -104.0f, highest = 89.0f, to_integer = 0x1.8p23f, least = -87.0f, most = 88.0f;
  static constexpr float log2_e = 0x1.715476p0f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
};

template <> struct exp_constants<double> {
  using bits = std::uint64_t;
  static constexpr unsigned mantissa = 52, bias = 1023, degree = 13;
  static constexpr double lowest = -746.0, highest = 710.0, to_integer = 0x1.8p52, least = -708.0, most = 709.0;
  static constexpr double log2_e = 0x1.71547652b82fep0, ln2_high = 0x1.62e42fee00000p-1,
                          ln2_low = 0x1.a39ef35793c76p-33;
};

template <class S, unsigned Degree> struct inverse_factorials {
  S value[Degree + 1];
  MOIETY_HD constexpr inverse_factorials() : value{} {
    double factorial = 1;
    for (unsigned n = 0; n <= Degree; ++n) {
      if (n > 0) factorial *= n;
      value[n] = static_cast<S>(1 / factorial);
    }
  }
};

/// Σ value[n] rⁿ. Written out, not looped: a loop around exp is vectorised only if exp has none.
template <class S, unsigned Degree, std::size_t... I>
MOIETY_HD inline S horner(inverse_factorials<S, Degree> const& of, S r, std::index_sequence<I...>) {
  S sum = of.value[Degree];
  ((sum = fma(sum, r, of.value[Degree - 1 - I])), ...);
  return sum;
}

/// v between two bounds; a NaN stays one.
template <class S> MOIETY_HD inline S bounded(S v, S least, S most) {
  S const raised = v < least ? least : v;
  return raised > most ? most : raised;
}

/// e^v = power · 2ⁿ, with n in the low bits of `shifted`.
template <class S> struct exp_parts { S power, shifted; };
template <class S> MOIETY_HD inline exp_parts<S> parts_of_exp(S v) {
  using constants = exp_constants<S>;
  constexpr inverse_factorials<S, constants::degree> taylor{};
  S const shifted = moiety::fma(v, constants::log2_e, constants::to_integer), n = shifted - constants::to_integer;
  S const r = moiety::fma(n, -constants::ln2_low, moiety::fma(n, -constants::ln2_high, v));
  return {horner(taylor, r, std::make_index_sequence<constants::degree>{}), shifted};
}

/// exp from least to most, where it is normal, and its values there beyond.
template <class S> MOIETY_HD inline S normal_exp(S v) {
  using constants = exp_constants<S>;
  using bits = typename constants::bits;
  exp_parts<S> const of = parts_of_exp(bounded(v, constants::least, constants::most));
  bits const one = bits{constants::bias} << constants::mantissa;
  return of.power * bit_cast<S>(static_cast<bits>((bit_cast<bits>(of.shifted) << constants::mantissa) + one));
}

}  // namespace detail

template <std::floating_point S> MOIETY_HD inline S exp(S v) {
  using constants = detail::exp_constants<S>;
  using bits = typename constants::bits;
  detail::exp_parts<S> const of = detail::parts_of_exp(detail::bounded(v, constants::lowest, constants::highest));
  // 2ⁿ in two factors, so that results below the normal range and above the largest come out by rounding.
  bits const integer = detail::bit_cast<bits>(of.shifted) - detail::bit_cast<bits>(constants::to_integer);
  bits const biased = integer + bits{2} * constants::bias, half = biased / 2;
  S const scale = detail::bit_cast<S>(static_cast<bits>(half << constants::mantissa));
  S const rest = detail::bit_cast<S>(static_cast<bits>((biased - half) << constants::mantissa));
  return of.power * scale * rest;
}

namespace detail {

/// atanh(s) − s for |s| ≤ 3 − 2√2.
MOIETY_HD inline double atanh_tail(double s) {
  double const square = s * s;
  double series = 1.0 / 25;
  MOIETY_UNROLL(11)  // so that the quotients are constants
  for (int odd = 23; odd >= 3; odd -= 2) series = fma(series, square, 1.0 / odd);
  return s * square * series;
}

}  // namespace detail

template <std::floating_point S> MOIETY_HD inline S log(S v) {
  if constexpr (std::same_as<S, float>) return static_cast<float>(moiety::log(static_cast<double>(v)));
  double x = v;
  if (!(x > 0)) return static_cast<S>(x == 0 ? -detail::infinity<double> : detail::not_a_number<double>);
  if (x == detail::infinity<double>) return static_cast<S>(x);
  std::int64_t exponent = 0;
  if (x < 0x1p-1022) x *= 0x1p54, exponent = -54;
  std::uint64_t const bits = detail::bit_cast<std::uint64_t>(x), mantissa = bits & 0xfffffffffffffu;
  constexpr std::uint64_t root_of_two = 0x6a09e667f3bcdu;
  bool const upper = mantissa > root_of_two;
  exponent += static_cast<std::int64_t>(bits >> 52) - (upper ? 1022 : 1023);
  double const m = detail::bit_cast<double>(mantissa | (upper ? 0x3fe0000000000000u : 0x3ff0000000000000u));
  double const n = static_cast<double>(exponent), s = (m - 1) / (m + 1);
  constexpr double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
  return static_cast<S>(fma(n, ln2_high, fma(2.0, s, fma(2.0, detail::atanh_tail(s), n * ln2_low))));
}

template <std::floating_point S> MOIETY_HD inline S log1p(S v) {
  double const x = v, y = 1 + x;
  if (x > 0.375) return static_cast<S>(moiety::log(y) + (x < 0x1p53 ? (x - (y - 1)) / y : 0));  // what y has lost of x
  double const twice = 2 * x / (x + 2);
  return static_cast<S>(twice + 2 * detail::atanh_tail(twice / 2));
}

namespace detail {

/// 1 / v for v from 1 to largest_divisor, rounded as a division is; for others any number. A device divides by a branch, which
/// keeps neighbouring values from being computed side by side: it gets Newton's step from its estimate.
template <std::floating_point S> inline constexpr S largest_divisor = S{1} / std::numeric_limits<S>::min();

MOIETY_HD inline double reciprocal(double v) { return 1 / v; }
MOIETY_HD inline float reciprocal(float v) {
#if defined(__CUDA_ARCH__)
  float near;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(v));
  return fma(near, fma(-v, near, 1.0f), near);
#else
  return 1 / v;
#endif
}

}  // namespace detail

template <std::floating_point S> MOIETY_HD inline S logistic(S v) {
  S const divisor = S{1} + detail::normal_exp(-v), result = detail::reciprocal(divisor);
  return divisor > detail::largest_divisor<S> ? S{0} : result;
}

template <std::floating_point S> MOIETY_HD inline S erf(S v) { return std::erf(v); }
template <std::floating_point S> MOIETY_HD inline S sqrt(S v) { return std::sqrt(v); }

template <std::floating_point S> MOIETY_HD constexpr bool is_finite(S v) { return v - v == S{0}; }

}  // namespace moiety
