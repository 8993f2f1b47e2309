// SPDX-License-Identifier: Apache-2.0
// A sum whose bits do not depend on the order of its terms.
//
// Each term is rounded to the nearest multiple of 2⁻⁶⁴ and added as an integer of 128 bits, so addition is associative
// and commutative to the last bit, over threads, ranks and micro-batches. A term that is not finite, or whose magnitude
// is 2⁶² or more, is counted instead of added; value() is then NaN. The sum itself must stay below 2⁶³ in magnitude.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

class exact_sum {
 public:
  exact_sum() = default;
  /// whole + fraction · 2⁻⁶⁴
  MOIETY_HD constexpr exact_sum(std::int64_t whole, std::uint64_t fraction) : fraction_(fraction), whole_(whole) {}

  MOIETY_HD constexpr void add(double term) {
    if (!(term < 0x1p62 && term > -0x1p62)) {
      ++non_finite_;
      return;
    }
    double const magnitude = term < 0 ? -term : term;
    std::int64_t const whole = static_cast<std::int64_t>(magnitude);
    double const scaled = (magnitude - static_cast<double>(whole)) * 0x1p64;  // exact, below 2⁶⁴
    std::uint64_t fraction = static_cast<std::uint64_t>(scaled);
    double const rest = scaled - static_cast<double>(fraction);  // only below 2⁵³ is there one
    if (rest > 0.5 || (rest == 0.5 && (fraction & 1u) != 0u)) ++fraction;
    if (term < 0)
      add(negated_whole(whole, fraction), negated(fraction));
    else
      add(whole, fraction);
  }

  MOIETY_HD constexpr exact_sum& operator+=(exact_sum const& other) {
    add(other.whole_, other.fraction_);
    non_finite_ += other.non_finite_;
    return *this;
  }

  /// Adds this sum to one that others add to at the same time, with the bits of +=. add(word, value) adds to a word
  /// modulo 2⁶⁴ as one indivisible operation, and returns what it held before.
  MOIETY_CALLS_GIVEN template <class Add> MOIETY_HD void add_to(exact_sum& total, Add const& add) const {
    std::uint64_t const carry = add(total.fraction_, fraction_) + fraction_ < fraction_ ? 1u : 0u;
    std::uint64_t const whole = static_cast<std::uint64_t>(whole_) + carry;
    if (whole != 0) add(reinterpret_cast<std::uint64_t&>(total.whole_), whole);
    if (non_finite_ != 0)
      add(reinterpret_cast<std::uint64_t&>(total.non_finite_), static_cast<std::uint64_t>(non_finite_));
  }

  /// The sum as a double, to within one unit in the last place; NaN if a term was counted and not added.
  MOIETY_HD constexpr double value() const {
    if (non_finite_ != 0) return detail::not_a_number<double>;
    if (whole_ >= 0) return static_cast<double>(whole_) + static_cast<double>(fraction_) * 0x1p-64;
    // Negate, so that both parts have one sign and the larger carries the leading bits.
    return -(static_cast<double>(negated_whole(whole_, fraction_)) + static_cast<double>(negated(fraction_)) * 0x1p-64);
  }

  /// The two parts of the sum: it is whole() + fraction() · 2⁻⁶⁴.
  MOIETY_HD constexpr std::int64_t whole() const { return whole_; }
  MOIETY_HD constexpr std::uint64_t fraction() const { return fraction_; }

  /// Terms that were not finite, or too large.
  MOIETY_HD constexpr std::int64_t non_finite() const { return non_finite_; }

  friend constexpr bool operator==(exact_sum const&, exact_sum const&) = default;

 private:
  // The two halves of a negated integer of 128 bits.
  MOIETY_HD static constexpr std::uint64_t negated(std::uint64_t fraction) { return ~fraction + 1u; }
  MOIETY_HD static constexpr std::int64_t negated_whole(std::int64_t whole, std::uint64_t fraction) {
    return ~whole + (fraction == 0u ? 1 : 0);
  }

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
