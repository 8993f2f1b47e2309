// SPDX-License-Identifier: Apache-2.0
// The blocks of the grouped products of sm_90a: who does what, and how their tiles share registers and shared memory.
//
//   block   warpgroups: the first fills a ring of stages in shared memory, the next two multiply 64 rows each; where sums are
//           staged, further ones hand them over while the next tile is multiplied, or the warps of the first that do not
//           copy; else the two do
//   tile    128 rows and some columns, which M matrices share side by side; its sums stay in registers
//   stage   64 k of a tile's operands: A [128 x 64], then B [columns x 64], tiles of matrices.hpp
//   staged  a tile's sums in shared memory, rounded where the epilogue would
//
// A block has a multiprocessor for itself: registers that copying does not need go to the sums, and all of its shared
// memory is stages, and staged sums.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/fragments.hpp>
#include <moiety/kernels/cuda/sm90/matrices.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

inline constexpr int multiplying_warpgroups = 2;
inline constexpr int tile_rows = multiplying_warpgroups * warpgroup_rows;
inline constexpr int tile_a_bytes = tile_rows * gpu::tile_row_bytes;

/// Shared memory that a block can have, and what of it is kept for barriers and tasks.
inline constexpr int shared_limit = 227 << 10;
inline constexpr int control_bytes = 1 << 10;

/// Registers of a block, of its threads as it starts, of one that hands staged sums over, and of one that multiplies once the
/// first warpgroup has given all but so many. Warps that hand over: none, the 3 beside the one that has the copy engine fill the
/// ring, or 4 or 8 in warpgroups of their own, the more where a thread's sums leave room for them.
inline constexpr int block_registers = 65536;
template <int HandingWarps> struct block_shape {
  static_assert(HandingWarps == 0 || HandingWarps == 3 || HandingWarps == 4 || HandingWarps == 8);
  static constexpr int handing_warps = HandingWarps, handing_warpgroups = HandingWarps / 4;
  static constexpr bool hands_over_beside = HandingWarps == 3;
  static constexpr int warpgroups = 1 + multiplying_warpgroups + handing_warpgroups;
  static constexpr int threads = warpgroups * warpgroup_threads;
  static constexpr int first_handing_thread = hands_over_beside ? 32 : (1 + multiplying_warpgroups) * warpgroup_threads;
  static constexpr int starting_registers = block_registers / threads / 8 * 8;
  static constexpr int handing_registers = handing_warps == 8 ? 104 : 120;
  /// Of the first warpgroup, where `copying` suffice to copy.
  MOIETY_HD static constexpr int first_registers(int copying) {
    return hands_over_beside ? handing_registers : copying;
  }
  MOIETY_HD static constexpr int multiplying_registers(int copying) {
    return (warpgroups * starting_registers - first_registers(copying) - handing_warpgroups * handing_registers) /
           multiplying_warpgroups / 8 * 8;
  }
};

/// The ring of tiles of `Columns` columns, of all matrices together, and their sums, of `SumBytes` bytes each if staged.
template <int Columns, int SumBytes> struct tile_shape {
  static_assert(Columns % 32 == 0 && Columns > 0 && Columns <= 256);
  static constexpr int columns = Columns;
  static constexpr int stage_bytes = tile_a_bytes + columns * gpu::tile_row_bytes;
  static constexpr int staged_bytes = tile_rows * columns * SumBytes;
  static constexpr int stages = (shared_limit - tile_alignment - control_bytes - staged_bytes) / stage_bytes;
  static constexpr int ring_bytes = stages * stage_bytes;
  /// What a launch asks for: stages begin at a multiple of tile_alignment, wherever the block's memory does.
  static constexpr std::int64_t shared_bytes = tile_alignment + ring_bytes + staged_bytes + control_bytes;
  static_assert(stage_bytes % tile_alignment == 0 && shared_bytes <= shared_limit);
  static_assert(stages >= 3, "one stage is filled, one read, and one waits to be released");
};

/// What the warpgroups that multiply are told of a tile: its group, its first row (of n in tn) and how many it has, the
/// number of its column tile, how many stages sum it, and how much of the last stage's depth is of the group, where others'
/// rows may follow. No rows: there is no further tile.
struct tile_task {
  int group = 0, first_row = 0, rows = 0, column_tile = 0, steps = 0, last_depth = gpu::tile_depth;
};

/// Where a warpgroup is in the ring: a stage, and the parity of the phase that its barriers are in for this round.
struct ring_place {
  int stage = 0;
  unsigned parity = 0;

  MOIETY_HD constexpr void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1u;
  }
  friend constexpr bool operator==(ring_place const&, ring_place const&) = default;
};

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
