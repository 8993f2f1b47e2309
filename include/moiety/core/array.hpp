// SPDX-License-Identifier: Apache-2.0
// array<T, N>: N values side by side, as std::array, whose members nvcc does not take in device code.
#pragma once

#include <moiety/core/config.hpp>

#include <cstddef>

namespace moiety::inline MOIETY_ABI {

template <class T, std::size_t N> struct array {
  T values[N];

  MOIETY_HD constexpr T& operator[](std::size_t i) { return values[i]; }
  MOIETY_HD constexpr T const& operator[](std::size_t i) const { return values[i]; }
  MOIETY_HD static constexpr std::size_t size() { return N; }
  MOIETY_HD constexpr T* begin() { return values; }
  MOIETY_HD constexpr T* end() { return values + N; }
  MOIETY_HD constexpr T const* begin() const { return values; }
  MOIETY_HD constexpr T const* end() const { return values + N; }
  friend constexpr bool operator==(array const&, array const&) = default;
};

template <class T, class... Ts> array(T, Ts...) -> array<T, 1 + sizeof...(Ts)>;

}  // namespace moiety
