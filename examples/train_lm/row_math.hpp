// SPDX-License-Identifier: Apache-2.0
// Reductions over one row, in sixteen lanes: the order of a sum is a function of the row's length alone, and the
// compiler can keep the lanes in vector registers.
#pragma once

#include <moiety/core/math.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>

namespace lm {

namespace mo = moiety;

inline constexpr std::size_t lanes = 16;

/// Starts every lane with `start`, updates lane i mod 16 by step(lane, i) for i = 0 … n − 1, and merges the lanes from
/// left to right.
template <class Real, class Step, class Merge> Real reduce(std::int64_t n, Real start, Step&& step, Merge&& merge) {
  std::array<Real, lanes> lane;
  lane.fill(start);
  constexpr auto width = static_cast<std::int64_t>(lanes);
  std::int64_t const whole = n / width * width;
  for (std::int64_t i = 0; i < whole; i += width)
    for (std::size_t l = 0; l < lanes; ++l) lane[l] = step(lane[l], i + static_cast<std::int64_t>(l));
  for (std::int64_t i = whole; i < n; ++i) {
    Real& last = lane[static_cast<std::size_t>(i - whole)];
    last = step(last, i);
  }
  return std::accumulate(lane.begin() + 1, lane.end(), lane[0], merge);
}

template <class Real> Real sum(Real const* a, std::int64_t n) {
  return reduce(
      n, Real{0}, [a](Real s, std::int64_t i) { return s + a[i]; }, std::plus<Real>{});
}

template <class Real> Real dot(Real const* a, Real const* b, std::int64_t n) {
  return reduce(
      n, Real{0}, [a, b](Real s, std::int64_t i) { return mo::fma(a[i], b[i], s); }, std::plus<Real>{});
}

/// The largest of n ≥ 1 values.
template <class Real> Real largest(Real const* a, std::int64_t n) {
  auto const larger = [](Real x, Real y) { return x > y ? x : y; };
  return reduce(
      n, a[0], [a, larger](Real top, std::int64_t i) { return larger(top, a[i]); }, larger);
}

/// log Σ exp a, in double.
template <class Real> double log_sum_exp(Real const* a, std::int64_t n) {
  auto const top = static_cast<double>(largest(a, n));
  double total = 0;
  for (std::int64_t i = 0; i < n; ++i) total += std::exp(static_cast<double>(a[i]) - top);
  return top + std::log(total);
}

}  // namespace lm
