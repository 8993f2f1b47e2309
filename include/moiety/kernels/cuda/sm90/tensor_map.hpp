// SPDX-License-Identifier: Apache-2.0
// What the copy engine of sm_90 (TMA) is told about matrices in device memory: rows of elements of 16 bits, or of 8, of
// which it copies boxes of 64 columns, or 128, x some rows into a swizzled tile (matrices.hpp), with zeros for what
// lies outside.
//
//   mapped_rows                 [rows x columns] with `stride` elements between rows
//   mapped_groups               [groups x rows x columns], a box being of one group
//   mappable(of)                whether the engine can: data at a multiple of 16 bytes, strides of multiples of 16 bytes and
//                               below 2^40 bytes, groups a whole number of rows apart, at least one element, boxes of
//                               1 ... 256 rows. Columns need be a multiple of nothing
//   box_bytes(of)               what a box brings, with the zeros
//   tensor_map                  the engine's own form of it, made by tensor_map.cuh; a kernel takes it as __grid_constant__
#pragma once

#include <moiety/core/config.hpp>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

struct alignas(64) tensor_map {
  std::byte opaque[128];
};

inline constexpr int box_row_bytes = 128;
inline constexpr int box_columns = box_row_bytes / 2;  // of 16 bits

struct mapped_rows {
  void const* data;
  std::int64_t rows, columns, stride;  // in elements
  int box_rows;
  int element_bytes = 2;
};

struct mapped_groups {
  void const* data;
  std::int64_t groups, rows, columns, group_stride, row_stride;
  int box_rows;
  int element_bytes = 2;
};

/// Extents are counted by coordinates of 32 bits.
constexpr bool is_map_extent(std::int64_t elements) { return elements >= 1 && elements <= std::int64_t{1} << 31; }
constexpr bool is_map_stride(std::int64_t elements, int element_bytes) {
  std::int64_t const most = (std::int64_t{1} << 40) / element_bytes;
  return elements >= 1 && elements < most && elements * element_bytes % 16 == 0;
}

inline bool mappable(mapped_rows const& of) {
  return (of.element_bytes == 1 || of.element_bytes == 2) && reinterpret_cast<std::uintptr_t>(of.data) % 16 == 0 &&
         of.data != nullptr && is_map_extent(of.rows) && is_map_extent(of.columns) &&
         is_map_stride(of.stride, of.element_bytes) && of.stride >= of.columns && of.box_rows >= 1 &&
         of.box_rows <= 256;
}

inline bool mappable(mapped_groups const& of) {
  return mappable(mapped_rows{of.data, of.rows, of.columns, of.row_stride, of.box_rows, of.element_bytes}) &&
         is_map_extent(of.groups) && is_map_stride(of.group_stride, of.element_bytes) &&
         of.group_stride % of.row_stride == 0 && of.group_stride / of.row_stride >= of.rows;
}

template <class Mapped> constexpr unsigned box_bytes(Mapped const& of) {
  return static_cast<unsigned>(of.box_rows) * box_row_bytes;
}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
