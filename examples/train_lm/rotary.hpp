// SPDX-License-Identifier: Apache-2.0
// Rotary positions (Su et al. 2021): the pair (i, i + d/2) of a row of d values is turned by position · base^(−2i/d).
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace lm {

template <class Real> class rotary {
 public:
  explicit rotary(std::int64_t size) : half_(size / 2) {}

  /// Knows positions below `length` from now on.
  void reach(std::int64_t length) {
    for (auto position = std::ssize(turns_) / half_; position < length; ++position)
      for (std::int64_t i = 0; i < half_; ++i) {
        double const exponent = -static_cast<double>(i) / static_cast<double>(half_);
        double const angle = static_cast<double>(position) * std::pow(base, exponent);
        turns_.push_back({static_cast<Real>(std::cos(angle)), static_cast<Real>(std::sin(angle))});
      }
  }

  /// out = scale · in, turned.
  void turn(std::int64_t position, Real const* in, Real* out, Real scale) const {
    pair const* const turns = turns_.data() + position * half_;
    for (std::int64_t i = 0; i < half_; ++i) {
      Real const a = in[i] * scale, b = in[i + half_] * scale;
      out[i] = a * turns[i].cos - b * turns[i].sin;
      out[i + half_] = a * turns[i].sin + b * turns[i].cos;
    }
  }

  /// The transpose of turn.
  void turn_back(std::int64_t position, Real const* in, Real* out, Real scale) const {
    pair const* const turns = turns_.data() + position * half_;
    for (std::int64_t i = 0; i < half_; ++i) {
      Real const a = in[i] * scale, b = in[i + half_] * scale;
      out[i] = a * turns[i].cos + b * turns[i].sin;
      out[i + half_] = b * turns[i].cos - a * turns[i].sin;
    }
  }

 private:
  static constexpr double base = 10000;
  struct pair {
    Real cos, sin;
  };

  std::int64_t half_;
  std::vector<pair> turns_;  // [positions × d/2]
};

}  // namespace lm
