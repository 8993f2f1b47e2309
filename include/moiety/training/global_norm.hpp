// SPDX-License-Identifier: Apache-2.0
// The norm of all gradients of a model, √ Σ g², and clipping by it.
//
//   double const norm = mo::global_norm(list, groups);      a collective of the whole run
//   mo::clip_gradients(list, 1.0, norm);                     g · min(1, max_norm / norm)
//
// Each logical parameter counts once: of a tensor that n ranks hold, each counts its slice_of(size, rank, n). So gradients may
// be summed everywhere or in slices, and a rank may hold no tensor at all.
//
// The bits depend on the gradients alone, not on the layout, the numerics or any order. With 2ᵉ the power of two above the
// largest |g| of the run, terms (g / 2ᵉ)² below 1 are rounded to multiples of 2⁻⁸⁴ and added as integers, so neither huge nor
// tiny gradients are lost; the sum is exact to n · 2⁻⁸⁴ of the largest term, for n below 2⁴³ parameters.
//
// A gradient that is not finite makes the norm NaN or infinite on every rank. Such a norm clips nothing: the step is to be
// skipped, see adamw. clip_gradients throws config_error where max_norm is not positive.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/training/replication.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// The largest |g|, as the bits of a double: they are in order for numbers, then infinity, then NaN.
template <std::floating_point S> std::uint64_t largest_magnitude(std::span<S const> values) {
  using bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  bits largest = 0;
  for (S const g : values) largest = std::max(largest, static_cast<bits>(bit_cast<bits>(g) << 1));
  return bit_cast<std::uint64_t>(static_cast<double>(bit_cast<S>(static_cast<bits>(largest >> 1))));
}

/// Adds Σ (g / 2^exponent)² · 2²⁰; every |g| is below 2^exponent.
template <std::floating_point S> void add_squares(std::span<S const> values, int exponent, exact_sum& sum) {
  constexpr std::size_t block = 4096;  // 2¹² integers of 51 bits fit in 64
  constexpr double to_high = 6,
                   to_low = 0x1.8p-32;  // their last places are 2⁻⁵⁰ and 2⁻⁸⁴, of all that is added here too
  auto const places = [](double rounded, double from) {
    return bit_cast<std::int64_t>(rounded) - bit_cast<std::int64_t>(from);
  };
  // In two parts, as 2^-exponent itself may be no double.
  double const scale = std::ldexp(1.0, -(exponent / 2)), rest_of_scale = std::ldexp(1.0, exponent / 2 - exponent);
  for (std::size_t first = 0; first < values.size(); first += block) {
    std::int64_t highs = 0, lows = 0;
    for (S const g : values.subspan(first, std::min(block, values.size() - first))) {
      double const x = static_cast<double>(g) * scale * rest_of_scale;
      double const high = moiety::fma(x, x, to_high);
      highs += places(high, to_high);
      lows += places(moiety::fma(x, x, to_high - high) + to_low, to_low);
    }
    sum += exact_sum(highs >> 30, static_cast<std::uint64_t>(highs) << 34);
    sum += exact_sum(lows < 0 ? -1 : 0, static_cast<std::uint64_t>(lows));
  }
}

/// f(the values that this rank counts) of each tensor.
template <class S, communicator C, class F>
void for_each_counted(gradient_list<S> const& gradients, rank_groups<C> const& groups, F const& f) {
  for (auto const& slice : gradients) {
    C& group = groups.of(slice.over);
    range_of const mine = slice_of(static_cast<std::int64_t>(slice.values.size()), group.rank(), group.size());
    f(std::span<S const>(slice.values.data() + mine.first, static_cast<std::size_t>(mine.count)));
  }
}

}  // namespace detail

template <std::floating_point S, communicator C>
double global_norm(gradient_list<S> const& gradients, rank_groups<C> const& groups) {
  std::uint64_t bits = 0;
  detail::for_each_counted(gradients, groups,
                           [&](std::span<S const> v) { bits = std::max(bits, detail::largest_magnitude(v)); });
  groups.world.all_reduce(std::span(&bits, 1), [](std::uint64_t& a, std::uint64_t const& b) { a = std::max(a, b); });
  double const largest = detail::bit_cast<double>(bits);
  if (largest == 0 || !std::isfinite(largest)) return largest;

  int exponent = 0;
  std::frexp(largest, &exponent);
  exact_sum sum;
  detail::for_each_counted(gradients, groups, [&](std::span<S const> v) { detail::add_squares(v, exponent, sum); });
  groups.world.all_reduce(std::span(&sum, 1));
  return std::ldexp(std::sqrt(sum.value() * 0x1p-20), exponent);
}

/// Scales the gradients to a norm of at most max_norm, and returns the factor.
template <std::floating_point S>
double clip_gradients(gradient_list<S> const& gradients, double max_norm, double norm) {
  detail::require<config_error>(max_norm > 0, "max_norm must be positive, but is ", max_norm, '.');
  if (!std::isfinite(norm) || norm <= max_norm) return 1;
  double const factor = max_norm / norm;
  for (auto const& slice : gradients)
    for (S& g : slice.values) g = static_cast<S>(static_cast<double>(g) * factor);
  return factor;
}

}  // namespace moiety
