// SPDX-License-Identifier: Apache-2.0
// Work on rows, written once for both back ends: for_rows calls f(team, row) for each row. A team of the host is one thread,
// that of a device sixteen (device.cuh).
//
//   team.columns(n, f)                       f(i) for i = 0 … n − 1
//   team.reduce(n, start, step, merge)       lane i mod 16 by step(lane, i), each from `start` on; lanes merged from left to right
//   team.once(f)                             f() by one thread
//
// The order of a sum is a function of the row's length alone, and the compiler can keep the lanes in vector registers. What
// belongs to column i is always lane i mod 16's: f reads nothing that it wrote to another column.
#pragma once

#include <moiety/moiety.hpp>

#include <cstdint>

namespace lm {

namespace mo = moiety;

inline constexpr int lanes = 16;

struct one_thread {
  template <class F> MOIETY_HD void columns(std::int64_t n, F const& f) const {
    for (std::int64_t i = 0; i < n; ++i) f(i);
  }
  template <class F> MOIETY_HD void once(F const& f) const { f(); }

  template <class Real, class Step, class Merge>
  MOIETY_HD Real reduce(std::int64_t n, Real start, Step const& step, Merge const& merge) const {
    Real lane[lanes];
    for (Real& l : lane) l = start;
    std::int64_t const whole = n / lanes * lanes;
    for (std::int64_t i = 0; i < whole; i += lanes)
      for (int l = 0; l < lanes; ++l) lane[l] = step(lane[l], i + l);
    for (std::int64_t i = whole; i < n; ++i) lane[i - whole] = step(lane[i - whole], i);
    Real all = lane[0];
    for (int l = 1; l < lanes; ++l) all = merge(all, lane[l]);
    return all;
  }
};

/// A thread takes `together` rows at a time.
template <class F> void for_rows(mo::host_engine& engine, std::int64_t rows, std::int64_t together, F const& f) {
  engine.for_blocks(rows, together, [&](std::int64_t row, std::int64_t last, int) {
    for (; row < last; ++row) f(one_thread{}, row);
  });
}
template <class F> void for_rows(mo::cuda_engine& engine, std::int64_t rows, std::int64_t together, F const& f);

struct plus {
  template <class Real> MOIETY_HD Real operator()(Real a, Real b) const { return a + b; }
};
struct larger {
  template <class Real> MOIETY_HD Real operator()(Real a, Real b) const { return a > b ? a : b; }
};

template <class Team, class Real> MOIETY_HD Real sum(Team const& team, Real const* a, std::int64_t n) {
  return team.reduce(
      n, Real{0}, [a](Real s, std::int64_t i) { return s + a[i]; }, plus{});
}

template <class Team, class Real> MOIETY_HD Real dot(Team const& team, Real const* a, Real const* b, std::int64_t n) {
  return team.reduce(
      n, Real{0}, [a, b](Real s, std::int64_t i) { return mo::fma(a[i], b[i], s); }, plus{});
}

/// The largest of n ≥ 1 values.
template <class Team, class Real> MOIETY_HD Real largest(Team const& team, Real const* a, std::int64_t n) {
  return team.reduce(
      n, a[0], [a](Real top, std::int64_t i) { return larger{}(top, a[i]); }, larger{});
}

/// log Σ exp a, in double.
template <class Team, class Real> MOIETY_HD double log_sum_exp(Team const& team, Real const* a, std::int64_t n) {
  auto const top = static_cast<double>(largest(team, a, n));
  double const total = team.reduce(
      n, 0.0, [a, top](double s, std::int64_t i) { return s + mo::exp(static_cast<double>(a[i]) - top); }, plus{});
  return top + mo::log(total);
}

}  // namespace lm
