// SPDX-License-Identifier: Apache-2.0
// A sum whose bits do not depend on the order of its terms.
//
// Each term is rounded to the nearest multiple of 2⁻⁶⁴ and added as an integer of 128 bits, so addition is associative
// and commutative to the last bit, over threads, ranks and micro-batches. A term that is not finite, or whose magnitude
// is 2⁶² or more, is counted instead of added; value() is then NaN. The sum itself must stay below 2⁶³ in magnitude.
#pragma once

#include <moiety/core/config.hpp>

#include <cstdint>
#include <limits>

namespace moiety::inline MOIETY_ABI {

class exact_sum {
 public:
  MOIETY_HD constexpr void add(double term) {
    if (!(term < 0x1p62 && term > -0x1p62)) {
      ++non_finite_;
      return;
    }
    std::int64_t whole = static_cast<std::int64_t>(term);
    if (static_cast<double>(whole) > term) --whole;                          // floor
    double const scaled = (term - static_cast<double>(whole)) * 0x1p64;      // exact, in [0, 2⁶⁴]
    if (scaled >= 0x1p64) return add(whole + 1, 0);                          // a tiny negative term
    std::uint64_t fraction = static_cast<std::uint64_t>(scaled);
    double const rest = scaled - static_cast<double>(fraction);              // below 2⁵³ a half can remain
    if (rest > 0.5 || (rest == 0.5 && (fraction & 1u) != 0u)) ++fraction;
    add(whole, fraction);
  }

  MOIETY_HD constexpr exact_sum& operator+=(exact_sum const& other) {
    add(other.whole_, other.fraction_);
    non_finite_ += other.non_finite_;
    return *this;
  }

  /// The sum rounded once to double; NaN if a term was counted and not added.
  MOIETY_HD constexpr double value() const {
    if (non_finite_ != 0) return std::numeric_limits<double>::quiet_NaN();
    if (whole_ >= 0) return static_cast<double>(whole_) + static_cast<double>(fraction_) * 0x1p-64;
    // Negate, so that the two parts have one sign and the larger carries the leading bits.
    std::uint64_t const fraction = ~fraction_ + 1u;
    std::int64_t const whole = ~whole_ + (fraction == 0u ? 1 : 0);
    return -(static_cast<double>(whole) + static_cast<double>(fraction) * 0x1p-64);
  }

  /// Terms that were not finite, or too large.
  MOIETY_HD constexpr std::int64_t non_finite() const { return non_finite_; }

  friend constexpr bool operator==(exact_sum const&, exact_sum const&) = default;

 private:
  MOIETY_HD constexpr void add(std::int64_t whole, std::uint64_t fraction) {
    fraction_ += fraction;
    std::uint64_t const carry = fraction_ < fraction ? 1u : 0u;
    whole_ = static_cast<std::int64_t>(static_cast<std::uint64_t>(whole_) + static_cast<std::uint64_t>(whole) + carry);
  }

  std::uint64_t fraction_ = 0;
  std::int64_t whole_ = 0;
  std::int64_t non_finite_ = 0;
};

}  // namespace moiety
