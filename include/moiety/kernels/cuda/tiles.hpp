// SPDX-License-Identifier: Apache-2.0
// The schedule of tiles over groups of rows: which block of a launch computes what.
//
// Tiles are numbered group by group, so that the blocks that run at one time share a group's matrix. Inside a group, bands
// of `band_rows` row tiles are walked column tile by column tile: consecutive tiles share columns of the matrix, and the
// rows of a band stay in the cache until its last column. The number of tiles depends on offsets that only the device
// knows; a launch has as many blocks as there can be tiles at most, and a block without a tile does nothing.
#pragma once

#include <moiety/core/config.hpp>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

/// N values side by side; device code has no standard containers.
template <class T, int N> using several = T[static_cast<std::size_t>(N)];

/// The groups of a row space. Null offsets mean one group of all rows.
struct ragged_rows {
  std::int64_t const* offsets = nullptr;
  std::int64_t groups = 0;
  std::int64_t rows_bound = 0;

  MOIETY_HD constexpr std::int64_t first(std::int64_t group) const {
    return offsets != nullptr ? offsets[group] : group * rows_bound;
  }
  MOIETY_HD constexpr std::int64_t count(std::int64_t group) const { return first(group + 1) - first(group); }
};

/// One tile: rows first_row ... first_row + rows - 1 of a group, and the number of its column tile. No rows: no tile.
struct tile {
  std::int64_t group = 0;
  std::int64_t first_row = 0;
  int rows = 0;
  std::int64_t column_tile = 0;
  friend constexpr bool operator==(tile const&, tile const&) = default;
};

inline constexpr std::int64_t band_rows = 8;

MOIETY_HD constexpr std::int64_t tiles_of(std::int64_t extent, std::int64_t width) {
  return (extent + width - 1) / width;
}

/// No offsets over that many rows and groups make more tiles of `height` rows.
MOIETY_HD constexpr std::int64_t row_tiles_bound(std::int64_t rows_bound, std::int64_t groups, std::int64_t height) {
  std::int64_t const used = groups < rows_bound ? groups : rows_bound;
  return (rows_bound + used * (height - 1)) / height;
}

/// Tile `number` of the tiles of one group, which has `row_tiles` * `column_tiles` of them.
struct place {
  std::int64_t row_tile, column_tile;
  friend constexpr bool operator==(place const&, place const&) = default;
};
MOIETY_HD constexpr place place_in_group(std::int64_t number, std::int64_t row_tiles, std::int64_t column_tiles) {
  std::int64_t const band = number / (band_rows * column_tiles), in_band = number - band * band_rows * column_tiles;
  std::int64_t const left = row_tiles - band * band_rows, height = left < band_rows ? left : band_rows;
  return {band * band_rows + in_band % height, in_band / height};
}

/// The tile of a group, `number` counted from the group's first.
MOIETY_HD constexpr tile tile_in_group(ragged_rows const& of, std::int64_t group, std::int64_t number, int height,
                                       std::int64_t column_tiles) {
  std::int64_t const rows = of.count(group);
  place const at = place_in_group(number, tiles_of(rows, height), column_tiles);
  std::int64_t const left = rows - at.row_tile * height;
  return {group, of.first(group) + at.row_tile * height, left < height ? static_cast<int>(left) : height,
          at.column_tile};
}

/// Tile `number` of all, by walking the groups one by one.
MOIETY_HD constexpr tile find_tile(ragged_rows const& of, std::int64_t number, int height, std::int64_t column_tiles) {
  for (std::int64_t group = 0; group < of.groups; ++group) {
    std::int64_t const tiles = tiles_of(of.count(group), height) * column_tiles;
    if (number < tiles) return tile_in_group(of, group, number, height, column_tiles);
    number -= tiles;
  }
  return {};
}

/// Tiles of one matrix [rows x columns] of each of many groups, group by group and in the same order inside.
struct matrix_tile {
  std::int64_t group, row_tile, column_tile;
  friend constexpr bool operator==(matrix_tile const&, matrix_tile const&) = default;
};
MOIETY_HD constexpr matrix_tile find_matrix_tile(std::int64_t number, std::int64_t row_tiles,
                                                 std::int64_t column_tiles) {
  std::int64_t const group = number / (row_tiles * column_tiles);
  place const at = place_in_group(number - group * row_tiles * column_tiles, row_tiles, column_tiles);
  return {group, at.row_tile, at.column_tile};
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
