// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/fragments.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <utility>

using namespace moiety::kernels::gpu;

namespace {

/// Whether each element of [rows x cols] is held once by the 32 lanes.
template <class Function> bool covers(int rows, int cols, int per_lane, Function const& of) {
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < per_lane; ++i) {
      element const at = of(lane, i);
      if (at.row < 0 || at.row >= rows || at.col < 0 || at.col >= cols) return false;
      seen.emplace(at.row, at.col);
    }
  return static_cast<int>(seen.size()) == rows * cols && 32 * per_lane == rows * cols;
}

/// What a lane finds in its registers after ldmatrix x4 of a block at (outer, k): {outer, k} of each element.
template <tile_order Order> element received(element (*address)(int), int lane, int reg, int half, int outer, int k) {
  element const at = loaded_element(lane, half, Order == tile_order::outer_first);
  element const first = address(reg * 8 + at.row);
  int const offset = block_offset<Order>(outer, k, first) + at.col * 2;
  for (int o = 0; o < 128; ++o)
    for (int i = 0; i < tile_depth; ++i)
      if (element_offset<Order>(o, i) == offset) return {o, i};
  return {-1, -1};
}

template <tile_order Order> void check_offsets() {
  std::set<int> seen;
  bool chunks = true;
  for (int outer = 0; outer < 128; ++outer)
    for (int k = 0; k < tile_depth; ++k) {
      int const at = element_offset<Order>(outer, k);
      seen.insert(at);
      int const along = Order == tile_order::k_first ? k : outer;
      int const first = Order == tile_order::k_first ? element_offset<Order>(outer, k - k % 8)
                                                     : element_offset<Order>(outer - outer % 8, k);
      chunks = chunks && at == first + along % 8 * 2 && first % 16 == 0;
    }
  CHECK(chunks);
  CHECK(seen.size() == 128 * tile_depth);
  CHECK(*seen.begin() == 0);
  CHECK(*seen.rbegin() == 2 * panel_bytes - 2);
}

template <tile_order Order> void check_operands() {
  bool a = true, b = true, banks = true;
  for (int outer = 0; outer < 128; outer += 16)
    for (int k = 0; k < tile_depth; k += 16)
      for (int reg = 0; reg < 4; ++reg) {
        std::set<int> a_banks, b_banks;
        for (int row = 0; row < 8; ++row) {
          a_banks.insert(block_offset<Order>(outer, k, a_address<Order>(reg * 8 + row)) / 16 % 8);
          b_banks.insert(block_offset<Order>(outer, k, b_address<Order>(reg * 8 + row)) / 16 % 8);
        }
        banks = banks && a_banks.size() == 8 && b_banks.size() == 8;
        for (int lane = 0; lane < 32; ++lane)
          for (int half = 0; half < 2; ++half) {
            element const of_a = a_element(lane, reg, half), of_b = b_element(lane, reg % 2, half);
            a = a && received<Order>(&a_address<Order>, lane, reg, half, outer, k) ==
                         element{outer + of_a.row, k + of_a.col};
            b = b && received<Order>(&b_address<Order>, lane, reg, half, outer, k) ==
                         element{outer + reg / 2 * 8 + of_b.col, k + of_b.row};
          }
      }
  CHECK(a);
  CHECK(b);
  CHECK(banks);  // the eight rows that are read at once
}

}  // namespace

TEST_CASE("every e4m3 of a fragment has one place, as PTX documents it") {
  CHECK(covers(16, 32, 16, [](int lane, int i) { return e4m3_a_element(lane, i / 4, i % 4); }));
  CHECK(covers(32, 8, 8, [](int lane, int i) { return e4m3_b_element(lane, i / 4, i % 4); }));
  static_assert(e4m3_a_element(5, 0, 1) == element{1, 5});
  static_assert(e4m3_a_element(5, 1, 0) == element{9, 4});
  static_assert(e4m3_a_element(5, 2, 3) == element{1, 23});
  static_assert(e4m3_a_element(31, 3, 3) == element{15, 31});
  static_assert(e4m3_b_element(5, 0, 0) == element{4, 1});
  static_assert(e4m3_b_element(5, 1, 2) == element{22, 1});
}

TEST_CASE("two e4m3 lie where one element of 16 bits does, so ldmatrix and tiles serve both") {
  for (int lane = 0; lane < 32; ++lane)
    for (int byte = 0; byte < 4; ++byte) {
      for (int reg = 0; reg < 4; ++reg) {
        element const pair = a_element(lane, reg, byte / 2);
        CHECK(e4m3_a_element(lane, reg, byte) == element{pair.row, 2 * pair.col + byte % 2});
      }
      for (int reg = 0; reg < 2; ++reg) {
        element const pair = b_element(lane, reg, byte / 2);
        CHECK(e4m3_b_element(lane, reg, byte) == element{2 * pair.row + byte % 2, pair.col});
      }
    }
}

TEST_CASE("every float of a fragment has one place, as PTX documents it") {
  CHECK(covers(16, 8, 4, [](int lane, int i) { return tf32_a_element(lane, i); }));
  CHECK(covers(8, 8, 2, [](int lane, int i) { return tf32_b_element(lane, i); }));
  CHECK(tf32_a_element(5, 0) == element{1, 1});
  CHECK(tf32_a_element(5, 1) == element{9, 1});
  CHECK(tf32_a_element(5, 2) == element{1, 5});
  CHECK(tf32_a_element(31, 3) == element{15, 7});
  CHECK(tf32_b_element(5, 0) == element{1, 1});
  CHECK(tf32_b_element(5, 1) == element{5, 1});
}

TEST_CASE("ldmatrix of floats that lie k first brings every lane its fragment") {
  for (int lane = 0; lane < 32; ++lane)
    for (int reg = 0; reg < 4; ++reg) {
      element const at = loaded_element(lane, 0, false);  // a float is a pair of 16 bits
      element const a = a_address<tile_order::k_first>(reg * 8 + at.row);
      element const b = b_address<tile_order::k_first>(reg * 8 + at.row), of_b = tf32_b_element(lane, reg % 2);
      CHECK(tf32_a_element(lane, reg) == element{a.row, (a.col + at.col) / 2});
      CHECK(element{b.row, (b.col + at.col) / 2} == element{of_b.col + reg / 2 * 8, of_b.row});
    }
}

TEST_CASE(
    "a float of an outer-first tile has a place of its own, and what a warp reads at once lies in different banks") {
  std::set<int> seen;
  bool chunks = true;
  for (int outer = 0; outer < float_outer; ++outer)
    for (int k = 0; k < 32; ++k) {
      int const at = float_offset(outer, k);
      seen.insert(at);
      chunks = chunks && at == float_chunk_offset(k, outer / 4) + outer % 4 * 4 && float_chunk_offset(k, 0) % 16 == 0;
    }
  CHECK(chunks);
  bool lanes = true;
  for (int outer = 0; outer < float_outer; outer += 32)
    for (int k = 0; k < 32; k += 4)
      for (int eights = 0; eights < 4; ++eights)
        for (int lane = 0; lane < 32; ++lane)
          for (int part : {0, outer})
            lanes = lanes && ((float_offset_of_lane(lane) + float_offset_of_block(part, 0)) ^ float_eights(eights)) +
                                     float_offset_of_block(outer - part, k) ==
                                 float_offset(outer + eights * 8 + lane / 4, k + lane % 4);
  CHECK(lanes);
  CHECK(seen.size() == 32 * float_outer);
  CHECK(*seen.rbegin() == 2 * panel_bytes - 4);
  for (int outer = 0; outer < float_outer; outer += 8)
    for (int k = 0; k < 32; k += 4) {
      std::set<int> banks;
      for (int lane = 0; lane < 32; ++lane) banks.insert(float_offset(outer + lane / 4, k + lane % 4) / 4 % 32);
      CHECK(banks.size() == 32);
    }
}

TEST_CASE("every element of a fragment has one place") {
  CHECK(covers(16, 16, 8, [](int lane, int i) { return a_element(lane, i / 2, i % 2); }));
  CHECK(covers(16, 8, 4, [](int lane, int i) { return b_element(lane, i / 2, i % 2); }));
  CHECK(covers(16, 8, 4, [](int lane, int i) { return c_element(lane, i); }));
  CHECK(covers(8, 8, 2, [](int lane, int i) { return loaded_element(lane, i, false); }));
  CHECK(covers(8, 8, 2, [](int lane, int i) { return loaded_element(lane, i, true); }));
}

TEST_CASE("a register is two neighbours along k, as ldmatrix leaves them") {
  for (int lane = 0; lane < 32; ++lane)
    for (int reg = 0; reg < 4; ++reg) {
      CHECK(a_element(lane, reg, 1) == element{a_element(lane, reg, 0).row, a_element(lane, reg, 0).col + 1});
      element const b = b_element(lane, reg % 2, 0);
      CHECK(b_element(lane, reg % 2, 1) == element{b.row + 1, b.col});
    }
}

TEST_CASE("fragments as PTX documents them") {
  CHECK(a_element(0, 0, 0) == element{0, 0});
  CHECK(a_element(5, 0, 1) == element{1, 3});
  CHECK(a_element(5, 1, 0) == element{9, 2});
  CHECK(a_element(5, 2, 0) == element{1, 10});
  CHECK(a_element(31, 3, 1) == element{15, 15});
  CHECK(b_element(5, 0, 0) == element{2, 1});
  CHECK(b_element(5, 1, 1) == element{11, 1});
  CHECK(c_element(5, 0) == element{1, 2});
  CHECK(c_element(5, 3) == element{9, 3});
}

TEST_CASE("an element of a tile has a place of its own, and chunks stay whole") {
  check_offsets<tile_order::k_first>();
  check_offsets<tile_order::outer_first>();
}

TEST_CASE("ldmatrix brings every lane its fragment, without bank conflicts") {
  check_operands<tile_order::k_first>();
  check_operands<tile_order::outer_first>();
}
