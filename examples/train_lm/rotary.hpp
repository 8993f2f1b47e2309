// SPDX-License-Identifier: Apache-2.0
// Rotary positions (Su et al. 2021): the pair (i, i + d/2) of a row of d values is turned by position · base^(−2i/d).
#pragma once

#include "rows.hpp"

#include <moiety/backend/kernel_list.hpp>

#include <cmath>
#include <cstdint>

namespace lm {

/// The turns of all positions, for kernels.
template <class Real> struct turns {
  struct pair {
    Real cos, sin;
  };
  pair const* of;  // [positions × half]
  std::int64_t half;

  /// out = scale · in, turned.
  template <class Team>
  MOIETY_HD void turn(Team const& team, std::int64_t position, Real const* in, Real* out, Real scale) const {
    pair const* const by = of + position * half;
    team.columns(half, [&](std::int64_t i) {
      Real const a = in[i] * scale, b = in[i + half] * scale;
      out[i] = a * by[i].cos - b * by[i].sin;
      out[i + half] = a * by[i].sin + b * by[i].cos;
    });
  }

  /// The transpose of turn.
  template <class Team>
  MOIETY_HD void turn_back(Team const& team, std::int64_t position, Real const* in, Real* out, Real scale) const {
    pair const* const by = of + position * half;
    team.columns(half, [&](std::int64_t i) {
      Real const a = in[i] * scale, b = in[i + half] * scale;
      out[i] = a * by[i].cos + b * by[i].sin;
      out[i + half] = b * by[i].cos - a * by[i].sin;
    });
  }
};

template <class Real> class rotary {
  using pair = typename turns<Real>::pair;

 public:
  rotary(mo::arena& memory, std::int64_t size) : half_(size / 2), known_(memory) {}

  /// Those of positions below `length`, at least.
  turns<Real> reach(std::int64_t length) {
    std::int64_t const before = std::ssize(known_.values) / half_;
    for (std::int64_t position = before; position < length; ++position)
      for (std::int64_t i = 0; i < half_; ++i) {
        double const exponent = -static_cast<double>(i) / static_cast<double>(half_);
        double const angle = static_cast<double>(position) * std::pow(base, exponent);
        known_.values.push_back({static_cast<Real>(std::cos(angle)), static_cast<Real>(std::sin(angle))});
      }
    if (before < length) known_.publish();
    return {known_.for_kernels(), half_};
  }

 private:
  static constexpr double base = 10000;

  std::int64_t half_;
  mo::kernel_list<pair> known_;
};

}  // namespace lm
