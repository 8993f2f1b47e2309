// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/tiles.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <tuple>
#include <vector>

using namespace moiety::kernels::gpu;
using int64 = std::int64_t;

namespace {

/// Tiles cover each row of each group once per column tile, and there are no more of them than the bound says.
bool covered(std::vector<int64> const& offsets, int height, int64 column_tiles) {
  auto const groups = static_cast<int64>(offsets.size()) - 1;
  ragged_rows const rows{offsets.data(), groups, offsets.back()};
  int64 const bound = row_tiles_bound(rows.rows_bound, groups, height) * column_tiles;
  std::vector<int> seen(static_cast<std::size_t>(offsets.back() * column_tiles));
  int64 number = 0;
  for (; number < bound; ++number) {
    tile const at = find_tile(rows, number, height, column_tiles);
    if (at.rows == 0) break;
    auto const group = static_cast<std::size_t>(at.group);
    if (at.rows > height || at.first_row < offsets[group] || at.first_row + at.rows > offsets[group + 1]) return false;
    if ((at.first_row - offsets[group]) % height != 0 || at.column_tile < 0 || at.column_tile >= column_tiles)
      return false;
    for (int64 r = at.first_row; r < at.first_row + at.rows; ++r)
      ++seen[static_cast<std::size_t>(r * column_tiles + at.column_tile)];
  }
  for (int64 beyond = number; beyond < bound + 3; ++beyond)
    if (find_tile(rows, beyond, height, column_tiles) != tile{}) return false;
  return std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; });
}

}  // namespace

TEST_CASE("tiles cover all rows once, for all small offsets") {
  bool all = true;
  for (int64 a = 0; a <= 9; ++a)
    for (int64 b = 0; b <= 9; ++b)
      for (int64 c = 0; c <= 9; ++c)
        for (int height : {1, 2, 3, 4, 8})
          for (int64 columns : {1, 2, 3}) all = all && covered({0, a, a + b, a + b + c}, height, columns);
  CHECK(all);
}

TEST_CASE("tiles of tall groups, of one group with all, and of no rows") {
  for (int64 rows : {31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 5000})
    for (int height : {32, 128})
      for (int64 columns : {1, 5}) {
        CHECK(covered({0, rows}, height, columns));
        CHECK(covered({0, 0, 0, rows, rows}, height, columns));
        CHECK(covered({0, 1, 2, 2 + rows, 3 + rows}, height, columns));
      }
  CHECK(covered({0, 0, 0}, 32, 4));
  CHECK(covered({0}, 32, 4));
}

TEST_CASE("the bound on tiles is reached, and no more") {
  CHECK(row_tiles_bound(0, 8, 128) == 0);
  CHECK(row_tiles_bound(8, 0, 128) == 0);
  CHECK(row_tiles_bound(1, 8, 128) == 1);
  CHECK(row_tiles_bound(8, 8, 128) == 8);
  CHECK(row_tiles_bound(256, 1, 128) == 2);
  CHECK(row_tiles_bound(257, 1, 128) == 3);
  for (int64 rows = 0; rows <= 12; ++rows) {
    int64 most = 0;
    for (int64 a = 0; a <= rows; ++a)
      for (int64 b = 0; a + b <= rows; ++b)
        most = std::max(most, tiles_of(a, 4) + tiles_of(b, 4) + tiles_of(rows - a - b, 4));
    CHECK(row_tiles_bound(rows, 3, 4) == most);
  }
}

TEST_CASE("null offsets are one group of all rows") {
  constexpr ragged_rows rows{nullptr, 1, 70};
  CHECK(find_tile(rows, 0, 32, 1) == tile{0, 0, 32, 0});
  CHECK(find_tile(rows, 2, 32, 1) == tile{0, 64, 6, 0});
  CHECK(find_tile(rows, 3, 32, 1) == tile{});
}

TEST_CASE("consecutive tiles of a group share columns of its matrix") {
  std::set<std::tuple<int64, int64>> seen;
  for (int64 number = 0; number < 19 * 5; ++number) {
    place const at = place_in_group(number, 19, 5);
    CHECK(seen.emplace(at.row_tile, at.column_tile).second);
    CHECK(at.row_tile < 19);
    CHECK(at.column_tile < 5);
  }
  for (int64 i = 0; i < band_rows; ++i) CHECK(place_in_group(i, 19, 5) == place{i, 0});
  CHECK(place_in_group(band_rows, 19, 5) == place{0, 1});
  CHECK(place_in_group(2 * band_rows * 5, 19, 5) == place{16, 0});
  CHECK(place_in_group(2 * band_rows * 5 + 3, 19, 5) == place{16, 1});
}

TEST_CASE("tiles of matrices") {
  std::set<std::tuple<int64, int64, int64>> seen;
  for (int64 number = 0; number < 3 * 10 * 4; ++number) {
    matrix_tile const at = find_matrix_tile(number, 10, 4);
    CHECK(at.group == number / 40);
    CHECK(seen.emplace(at.group, at.row_tile, at.column_tile).second);
    CHECK(at.row_tile < 10);
    CHECK(at.column_tile < 4);
  }
}
