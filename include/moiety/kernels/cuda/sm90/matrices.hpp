// SPDX-License-Identifier: Apache-2.0
// How the matrix instructions of sm_90a (wgmma) see their operands in shared memory and their sums in registers.
//
//   sums [64 x N] += A [64 x 16] B [16 x N]    of a warpgroup of 128 threads; elements of A and B have 16 bits.
//             Of e4m3, which lies k first only, twice as many k: two neighbours lie where one element of 16 bits does
//   tile      64 k of an operand, as fragments.hpp lays it out and as a tensor map fills it: rows of 128 bytes whose chunks
//             of 16 bytes are exchanged by an XOR with the row. k first: a row is an outer element (a row of A, a column
//             of B). Outer first: panels of 64 outer elements, a row for each k
//   swizzled  what that XOR does to a byte address; a tile begins at a multiple of 1024 bytes, where the XOR is by zero
//   operand   the descriptor of 16 k of a tile: where it begins, and the distances between its atoms. An atom is 8 rows of
//             128 bytes: 8 outer x 64 k, or 64 outer x 8 k
//
// The PTX ISA documents the bits of a descriptor, the order of elements in an atom, that `stride` lies between atoms along
// the outer dimension (k first) or along k (outer first) and `leading` between atoms along the outer dimension (outer first;
// k first has no use for it), and which thread holds which sum. Only a device confirms that a start inside an atom selects
// the k of a step (k first), and that columns may end inside a panel (outer first, N of 32 or 96): instructions_test.cu.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/fragments.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

using gpu::element;
using gpu::tile_order;

inline constexpr int warpgroup_threads = 128;
inline constexpr int warpgroup_rows = 64;          // of the sums of a warpgroup
inline constexpr int step_depth = 16;              // k of an instruction
inline constexpr int tile_alignment = 1024;        // bytes
inline constexpr int atom_bytes = tile_alignment;  // 8 rows of 128 bytes

/// Where the byte lies that without a swizzle would lie at that address.
MOIETY_HD constexpr std::uint32_t swizzled(std::uint32_t address) { return address ^ (address >> 3 & 0x70u); }

/// The fields of a descriptor, in bytes.
struct descriptor {
  std::uint32_t start = 0;    // address in shared memory, below 256 KiB
  std::uint32_t leading = 0;  // below 256 KiB, as is stride; all are multiples of 16
  std::uint32_t stride = 0;
  std::uint32_t base_offset = 0;  // of the atoms from a multiple of 1024 bytes, in rows
  std::uint32_t swizzle = 1;      // 0 none, 1 of 128 bytes, 2 of 64, 3 of 32
  friend constexpr bool operator==(descriptor const&, descriptor const&) = default;
};

MOIETY_HD constexpr std::uint64_t encode(descriptor const& of) {
  return std::uint64_t{of.start >> 4 & 0x3fffu} | std::uint64_t{of.leading >> 4 & 0x3fffu} << 16 |
         std::uint64_t{of.stride >> 4 & 0x3fffu} << 32 | std::uint64_t{of.base_offset & 7u} << 49 |
         std::uint64_t{of.swizzle & 3u} << 62;
}

MOIETY_HD constexpr descriptor decode(std::uint64_t bits) {
  auto const bytes = [&](int first) { return static_cast<std::uint32_t>(bits >> first & 0x3fffu) << 4; };
  return {bytes(0), bytes(16), bytes(32), static_cast<std::uint32_t>(bits >> 49 & 7u),
          static_cast<std::uint32_t>(bits >> 62)};
}

/// Bytes from a tile's start to 64 outer elements further on, in either order.
MOIETY_HD constexpr int outer_offset(int outer) { return outer / 64 * gpu::panel_bytes; }

/// The descriptor of k 16 `step` ... 16 `step` + 15 of the tile that begins at that address of shared memory; of a tile's
/// outer elements from a multiple of 64 on, add outer_offset to the address.
template <tile_order Order> MOIETY_HD constexpr std::uint64_t operand(std::uint32_t tile, int step) {
  constexpr bool k_first = Order == tile_order::k_first;
  constexpr std::uint64_t first =
      encode({.start = 0, .leading = k_first ? 16u : unsigned{gpu::panel_bytes}, .stride = unsigned{atom_bytes}});
  constexpr int step_bytes = k_first ? step_depth * 2 : step_depth * gpu::tile_row_bytes;
  std::uint32_t const start = (tile + static_cast<std::uint32_t>(step * step_bytes)) / 16u;  // of 14 bits: nothing carries
  return first >> 32 << 32 | (static_cast<std::uint32_t>(first) + start);
}

/// The address of the element (outer, k), k of 0 ... 15, of the operand that a descriptor describes.
template <tile_order Order>
MOIETY_HD constexpr std::uint32_t element_address(descriptor const& of, std::uint32_t outer, std::uint32_t k) {
  if constexpr (Order == tile_order::k_first)
    return swizzled(of.start + outer / 8 * of.stride + outer % 8 * 128u + k * 2);
  return swizzled(of.start + outer / 64 * of.leading + outer % 64 * 2 + k / 8 * of.stride + k % 8 * 128u);
}

/// The row and column of what register `reg` of 0 ... N / 2 - 1 of thread 0 ... 127 of a warpgroup sums.
MOIETY_HD constexpr element sum_element(int thread, int reg) {
  element const in_block = gpu::c_element(thread % 32, reg % 4);
  return {thread / 32 * 16 + in_block.row, reg / 4 * 8 + in_block.col};
}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
