// SPDX-License-Identifier: Apache-2.0
// Router weights between slots and rows: slot s = t · k + j of token t is row order.positions[s], or none.
//
//   spread_weights            weights by slot → weights by row
//   gather_weight_gradients   dw of a slot = Σ_b parts[row · blocks + b], blocks ascending; 0 without a row
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class S> void spread_weights(permutation_view const& order, S const* by_slot, S* by_row) {
  for (std::int64_t slot = 0; slot < order.tokens * order.slots; ++slot)
    if (order.positions[slot] >= 0) by_row[order.positions[slot]] = by_slot[slot];
}

template <class S>
void gather_weight_gradients(permutation_view const& order, S const* parts, std::int64_t blocks, S* by_slot) {
  for (std::int64_t slot = 0; slot < order.tokens * order.slots; ++slot) {
    std::int64_t const row = order.positions[slot];
    by_slot[slot] = 0;
    for (std::int64_t b = 0; row >= 0 && b < blocks; ++b) by_slot[slot] += parts[row * blocks + b];
  }
}

}  // namespace moiety
