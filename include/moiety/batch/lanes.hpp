// SPDX-License-Identifier: Apache-2.0
// Lanes of a row folded in halves: lane l joins lane l + n/2, then l + n/4, and so on. Extents are constants, which is
// what compilers turn into vectors.
#pragma once

#include <moiety/core/config.hpp>

#include <cstddef>

namespace moiety::inline MOIETY_ABI::detail {

/// An array whose extent is an int, as indices of rows are.
template <class T, int Extent> using array_of = T[static_cast<std::size_t>(Extent)];

/// f(arguments…), be it of the host, of the device or of both.
MOIETY_CALLS_GIVEN template <class F, class... Arguments>
MOIETY_HD constexpr decltype(auto) call(F const& f, Arguments const&... arguments) {
  return f(arguments...);
}

MOIETY_CALLS_GIVEN template <std::size_t Lanes, class T, class Join>
MOIETY_HD T halved(T const (&lane)[Lanes], Join const& join) {
  if constexpr (Lanes == 1) {
    return lane[0];
  } else {
    T half[Lanes / 2];
    MOIETY_LANES
    for (std::size_t l = 0; l < Lanes / 2; ++l) half[l] = join(lane[l], lane[l + Lanes / 2]);
    return halved(half, join);
  }
}

}  // namespace moiety::inline MOIETY_ABI::detail
