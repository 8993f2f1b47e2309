// SPDX-License-Identifier: Apache-2.0
// Router weights between slots and rows: slot s = t · k + j of token t is row order.positions[s], or none.
//
//   spread_weights            weights by slot → weights by row
//   gather_weight_gradients   dw of a slot = Σ_b parts[row · blocks + b], blocks ascending; 0 without a row
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {
inline constexpr std::int64_t slots_per_task = 16384;
}  // namespace detail

template <class S>
void spread_weights(host_engine& engine, permutation_view const& order, S const* by_slot, S* by_row) {
  auto const spread = [&](std::int64_t slot, std::int64_t end, int) {
    for (; slot < end; ++slot)
      if (order.positions[slot] >= 0) by_row[order.positions[slot]] = by_slot[slot];
  };
  engine.for_blocks(order.tokens * order.slots, detail::slots_per_task, spread);
}

template <class S>
void gather_weight_gradients(host_engine& engine, permutation_view const& order, S const* parts, std::int64_t blocks,
                             S* by_slot) {
  auto const gather = [&](std::int64_t slot, std::int64_t end, int) {
    for (; slot < end; ++slot) {
      std::int64_t const row = order.positions[slot];
      by_slot[slot] = 0;
      for (std::int64_t b = 0; row >= 0 && b < blocks; ++b) by_slot[slot] += parts[row * blocks + b];
    }
  };
  engine.for_blocks(order.tokens * order.slots, detail::slots_per_task, gather);
}

template <class S> void spread_weights(cuda_engine& engine, permutation_view const& order, S const* by_slot, S* by_row);

template <class S>
void gather_weight_gradients(cuda_engine& engine, permutation_view const& order, S const* parts, std::int64_t blocks,
                             S* by_slot);

}  // namespace moiety::inline MOIETY_ABI::kernels
