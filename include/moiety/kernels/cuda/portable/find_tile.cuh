// SPDX-License-Identifier: Apache-2.0
// The tile of a block, found by a warp: what find_tile of tiles.hpp says, with the groups dealt to 32 lanes.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/tiles.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

/// Called by all lanes of a warp; each returns the tile. A lane sums the tiles of consecutive groups, so that all offsets
/// are under way at once.
__device__ inline tile warp_find_tile(ragged_rows const& of, std::int64_t number, int height,
                                      std::int64_t column_tiles) {
  constexpr unsigned all = 0xffffffffu;
  int const lane = static_cast<int>(threadIdx.x % 32);
  std::int64_t const share = tiles_of(of.groups, 32), first = lane * share;
  std::int64_t const last = first + share < of.groups ? first + share : of.groups;
  std::int64_t mine = 0;
  for (std::int64_t group = first; group < last; ++group) mine += tiles_of(of.count(group), height) * column_tiles;
  std::int64_t upto = mine;
  for (int step = 1; step < 32; step *= 2) {
    std::int64_t const below = __shfl_up_sync(all, upto, static_cast<unsigned>(step));
    if (lane >= step) upto += below;
  }
  unsigned const beyond = __ballot_sync(all, upto > number);
  if (beyond == 0) return {};
  int const owner = __ffs(static_cast<int>(beyond)) - 1;
  std::int64_t group = first, left = number - (upto - mine);
  if (lane == owner)
    for (;; ++group) {
      std::int64_t const tiles = tiles_of(of.count(group), height) * column_tiles;
      if (left < tiles) break;
      left -= tiles;
    }
  group = __shfl_sync(all, group, owner);
  left = __shfl_sync(all, left, owner);
  return tile_in_group(of, group, left, height, column_tiles);
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
