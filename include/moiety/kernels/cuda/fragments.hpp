// SPDX-License-Identifier: Apache-2.0
// Which lane and register of a warp holds which element, for the matrix instructions of instructions.cuh, and where the
// elements of a tile lie in shared memory.
//
//   mma m16n8k16     C [16 x 8] += A [16 x 16] B [16 x 8]: element(lane, register, half) of each operand
//   ldmatrix         lane l gives the address of row l % 8 of matrix l / 8; each matrix is 8 x 8 elements of 16 bits
//   tile             rows of 64 elements (128 bytes, 8 chunks of 16), the chunks of a row exchanged by an XOR with the row,
//                    so that the 8 rows that ldmatrix reads at once lie in different banks
//
// Floats that the tensor cores read as tf32 lie in the same tiles, of 32 k:
//
//   mma m16n8k8      C [16 x 8] += A [16 x 8] B [8 x 8]: tf32_a_element, tf32_b_element(lane, register); C as above
//   ldmatrix         a matrix is 8 rows of 4 floats, which come to the lanes as they are
//   outer first      one tile row of 512 bytes for each k, with the 128 outer elements; nothing transposes these on the way
//
// e4m3 lies k first only, in tiles of 128 k:
//
//   mma m16n8k32     C [16 x 8] += A [16 x 32] B [32 x 8]: e4m3_a_element, e4m3_b_element(lane, register, byte); C as
//                    above
//   ldmatrix, tiles  byte by byte as of 16 bits: two neighbours along k lie where one element of 16 bits does. So
//                    addresses and offsets below hold with half of k, k even
//
// A tile of an operand holds 64 k, of elements of 16 bits. It lies k first (an outer row or column is a tile row of 64 k) or outer first (panels
// of 64 outer elements, one tile row for each k).
#pragma once

#include <moiety/core/config.hpp>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

struct element {
  int row, col;
  friend constexpr bool operator==(element const&, element const&) = default;
};

/// A 16-bit operand register holds two elements: `half` 0 in the low bits.
MOIETY_HD constexpr element a_element(int lane, int reg, int half) {
  return {lane / 4 + 8 * (reg % 2), lane % 4 * 2 + half + 8 * (reg / 2)};
}
MOIETY_HD constexpr element b_element(int lane, int reg, int half) { return {lane % 4 * 2 + half + 8 * reg, lane / 4}; }
MOIETY_HD constexpr element c_element(int lane, int reg) { return {lane / 4 + 8 * (reg / 2), lane % 4 * 2 + reg % 2}; }

/// What a lane receives of an 8 x 8 matrix.
MOIETY_HD constexpr element loaded_element(int lane, int half, bool transposed) {
  int const outer = lane / 4, pair = lane % 4 * 2 + half;
  return transposed ? element{pair, outer} : element{outer, pair};
}

inline constexpr int tile_depth = 64;                    // k of a tile
inline constexpr int chunk_elements = 8;                 // 16 bytes
inline constexpr int tile_row_bytes = 128;               // 64 elements
inline constexpr int panel_bytes = 64 * tile_row_bytes;  // 64 tile rows

/// Bytes from a tile's start to a chunk of one of its rows.
MOIETY_HD constexpr int chunk_offset(int row, int chunk) { return row * tile_row_bytes + ((chunk ^ (row & 7)) * 16); }

/// How an operand lies in its tile.
enum class tile_order { k_first, outer_first };

/// Bytes from a tile's start to the element (outer, k).
template <tile_order Order> MOIETY_HD constexpr int element_offset(int outer, int k) {
  if constexpr (Order == tile_order::k_first) return chunk_offset(outer, k / 8) + k % 8 * 2;
  return outer / 64 * panel_bytes + chunk_offset(k, outer % 64 / 8) + outer % 8 * 2;
}

/// The element at the start of the row that a lane addresses, so that ldmatrix x4 leaves A [16 x 16] in registers 0 ... 3:
/// {outer, k} from the corner of that block. The matrices of an outer-first tile are transposed on the way.
template <tile_order Order> MOIETY_HD constexpr element a_address(int lane) {
  int const matrix = lane / 8, row = lane % 8;
  if constexpr (Order == tile_order::k_first) return {matrix % 2 * 8 + row, matrix / 2 * 8};
  return {matrix % 2 * 8, matrix / 2 * 8 + row};
}

/// The same for two B [16 x 8] side by side: registers 0, 1 of the first, then of the second. {outer, k}.
template <tile_order Order> MOIETY_HD constexpr element b_address(int lane) {
  int const matrix = lane / 8, row = lane % 8;
  if constexpr (Order == tile_order::k_first) return {matrix / 2 * 8 + row, matrix % 2 * 8};
  return {matrix / 2 * 8, matrix % 2 * 8 + row};
}

/// Bytes from a tile's start to what a lane addresses of the block whose corner is (outer, k), both multiples of 16.
/// `at` is the lane's a_address or b_address; all but two additions and an XOR are the same for every block.
template <tile_order Order> MOIETY_HD constexpr int block_offset(int outer, int k, element at) {
  if constexpr (Order == tile_order::k_first) {
    int const row = at.row * tile_row_bytes, chunk = (at.col / 8) ^ (at.row & 7);
    return outer * tile_row_bytes + row + (((k / 8) ^ chunk) * 16);
  }
  int const row = at.col * tile_row_bytes, chunk = (at.row / 8) ^ (at.col & 7);
  return outer / 64 * panel_bytes + k * tile_row_bytes + row + (((outer % 64 / 8) ^ chunk) * 16);
}

// e4m3: a register holds four neighbours along k, `byte` 0 in the low bits.

MOIETY_HD constexpr element e4m3_a_element(int lane, int reg, int byte) {
  return {lane / 4 + 8 * (reg % 2), lane % 4 * 4 + byte + 16 * (reg / 2)};
}
MOIETY_HD constexpr element e4m3_b_element(int lane, int reg, int byte) {
  return {lane % 4 * 4 + byte + 16 * reg, lane / 4};
}

// Floats.

MOIETY_HD constexpr element tf32_a_element(int lane, int reg) {
  return {lane / 4 + 8 * (reg % 2), lane % 4 + 4 * (reg / 2)};
}
MOIETY_HD constexpr element tf32_b_element(int lane, int reg) { return {lane % 4 + 4 * reg, lane / 4}; }

inline constexpr int float_outer = 128;  // outer elements of an outer-first tile of floats

/// Bytes from the start of an outer-first tile of floats to a chunk of 4 of them; and to one. The chunks of a row are exchanged
/// by an XOR with the row, so that what a warp reads of 4 rows lies in different banks.
MOIETY_HD constexpr int float_chunk_offset(int k, int chunk) {
  return k * float_outer * 4 + ((chunk ^ (k & 3) * 2) * 16);
}
MOIETY_HD constexpr int float_offset(int outer, int k) { return float_chunk_offset(k, outer / 4) + outer % 4 * 4; }

/// float_offset(outer + eights * 8 + lane / 4, k + lane % 4), outer a multiple of 32, k of 4 and eights 0 ... 3, is
/// (float_offset_of_lane(lane) ^ float_eights(eights)) + float_offset_of_block(outer, k), and outer may be in either part.
MOIETY_HD constexpr int float_offset_of_lane(int lane) {
  int const k = lane % 4, outer = lane / 4;
  return k * float_outer * 4 + outer % 4 * 4 + ((k * 2) ^ (outer / 4)) * 16;
}
MOIETY_HD constexpr int float_eights(int eights) { return eights * 32; }
MOIETY_HD constexpr int float_offset_of_block(int outer, int k) { return k * float_outer * 4 + outer * 4; }

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
