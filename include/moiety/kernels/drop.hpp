// SPDX-License-Identifier: Apache-2.0
// Slots beyond the capacity of their experts lose their rows.
//
//   drop_beyond<Capacity>(engine, router, about, order, routes, workspace)   order is the permutation of all slots that routes
//                                                 has; it is left in disorder: build it again afterwards
//   drop_workspace<Capacity>(sequences)           the bytes that a device works in, for a call of so many sequences
//
// Dropped slots get the id dropped_from(e) and weight 0. See capacity/capacity.hpp for what is kept.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/kernels/host/drop.hpp>

namespace moiety::inline MOIETY_ABI::kernels {

template <class Capacity> constexpr std::int64_t drop_workspace(std::int64_t sequences) {
  return Capacity::by_sequence ? (sequences + 1) * static_cast<std::int64_t>(sizeof(std::int64_t)) : 0;
}

template <class Capacity, class Router, class S>
void drop_beyond(cuda_engine& engine, Router const& router, batch const& about, permutation_view const& order,
                 routing_view<S> const& routes, void* workspace);

}  // namespace moiety::inline MOIETY_ABI::kernels
