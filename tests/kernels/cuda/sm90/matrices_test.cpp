// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/sm90/matrices.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <set>
#include <utility>

using namespace moiety::kernels;
using namespace moiety::kernels::sm90;

namespace {

/// Whether every descriptor of a tile leads to where fragments.hpp has the element.
template <tile_order Order> bool leads_to_elements(std::uint32_t tile, int outer_elements) {
  for (int step = 0; step < gpu::tile_depth / step_depth; ++step) {
    descriptor const of = decode(operand<Order>(tile, step));
    if (of.swizzle != 1 || of.base_offset != 0) return false;
    for (int outer = 0; outer < outer_elements; ++outer)
      for (int k = 0; k < step_depth; ++k) {
        auto const at = element_address<Order>(of, static_cast<std::uint32_t>(outer), static_cast<std::uint32_t>(k));
        if (at != tile + static_cast<std::uint32_t>(gpu::element_offset<Order>(outer, step * step_depth + k)))
          return false;
      }
  }
  return true;
}

template <tile_order Order> void check_outer_offset() {
  for (int const outer : {0, 64, 128, 192})
    for (int const k : {0, 9, 63})
      for (int const i : {0, 5, 63})
        CHECK(gpu::element_offset<Order>(outer + i, k) == outer_offset(outer) + gpu::element_offset<Order>(i, k));
}

}  // namespace

TEST_CASE("descriptors lead to the elements of tiles, in either order") {
  for (std::uint32_t const tile : {1024u, 2048u, 50u << 10, 196u << 10}) {
    CHECK(leads_to_elements<tile_order::k_first>(tile, 256));
    CHECK(leads_to_elements<tile_order::outer_first>(tile, 256));
  }
}

TEST_CASE("a later part of a tile is a tile further on") {
  check_outer_offset<tile_order::k_first>();
  check_outer_offset<tile_order::outer_first>();
}

TEST_CASE("the bits of a descriptor as PTX documents them") {
  CHECK(operand<tile_order::k_first>(0x8400, 0) == (1ull << 62 | 64ull << 32 | 1ull << 16 | 0x840));
  CHECK(operand<tile_order::k_first>(0x8400, 3) == (1ull << 62 | 64ull << 32 | 1ull << 16 | 0x846));
  CHECK(operand<tile_order::outer_first>(0x8400, 1) == (1ull << 62 | 64ull << 32 | 512ull << 16 | 0x8c0));
  CHECK(encode({.start = 16, .leading = 32, .stride = 64, .base_offset = 5, .swizzle = 2}) ==
        (2ull << 62 | 5ull << 49 | 4ull << 32 | 2ull << 16 | 1));
}

TEST_CASE("what is encoded is decoded") {
  std::mt19937 random(std::random_device{}());
  for (int i = 0; i < 1000; ++i) {
    auto const bytes = [&] { return static_cast<std::uint32_t>(random() % (1u << 14)) * 16; };
    descriptor const of{bytes(), bytes(), bytes(), static_cast<std::uint32_t>(random() % 8),
                        static_cast<std::uint32_t>(random() % 4)};
    CHECK(decode(encode(of)) == of);
  }
}

TEST_CASE("the swizzle exchanges the chunks of a row") {
  std::set<std::uint32_t> seen;
  bool in_row = true;
  for (std::uint32_t at = 0; at < 4096; ++at) {
    std::uint32_t const to = swizzled(at), chunk = (at / 16 ^ at / 128) % 8;
    in_row = in_row && to == at / 128 * 128 + chunk * 16 + at % 16;
    seen.insert(to);
  }
  CHECK(in_row);
  CHECK(seen.size() == 4096);
}

TEST_CASE("every sum of a warpgroup has one place, and a warp 16 rows") {
  for (int const n : {32, 64, 96, 128, 192, 256}) {
    std::set<std::pair<int, int>> seen;
    bool inside = true;
    for (int thread = 0; thread < warpgroup_threads; ++thread)
      for (int reg = 0; reg < n / 2; ++reg) {
        element const at = sum_element(thread, reg);
        inside = inside && at.row / 16 == thread / 32 && at.row < warpgroup_rows && at.col < n;
        seen.emplace(at.row, at.col);
      }
    CHECK(inside);
    CHECK(static_cast<int>(seen.size()) == warpgroup_rows * n);
  }
}

TEST_CASE("sums as PTX documents them") {
  CHECK(sum_element(0, 0) == element{0, 0});
  CHECK(sum_element(0, 1) == element{0, 1});
  CHECK(sum_element(0, 2) == element{8, 0});
  CHECK(sum_element(0, 4) == element{0, 8});
  CHECK(sum_element(37, 7) == element{25, 11});
  CHECK(sum_element(127, 127) == element{63, 255});
}
