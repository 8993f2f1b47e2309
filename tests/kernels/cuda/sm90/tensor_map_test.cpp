// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/sm90/tensor_map.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>

using namespace moiety::kernels::sm90;

namespace {

alignas(16) std::byte const memory[32] = {};

mapped_rows rows(std::int64_t columns, std::int64_t stride) { return {memory, 5, columns, stride, 64}; }
mapped_groups groups(std::int64_t group_stride, std::int64_t row_stride) {
  return {memory, 3, 5, 9, group_stride, row_stride, 64};
}

}  // namespace

TEST_CASE("rows that the engine can be told of") {
  CHECK(mappable(rows(64, 64)));
  CHECK(mappable(rows(1, 8)));
  CHECK(mappable(rows(61, 64)));
  CHECK_FALSE(mappable(rows(61, 61)));
  CHECK_FALSE(mappable(rows(64, 68)));
  CHECK_FALSE(mappable(rows(64, 56)));
  CHECK_FALSE(mappable(rows(0, 8)));
  CHECK_FALSE(mappable(mapped_rows{memory, 0, 8, 8, 64}));
  CHECK_FALSE(mappable(mapped_rows{memory + 8, 5, 8, 8, 64}));
  CHECK(mappable(mapped_rows{memory + 16, 5, 8, 8, 64}));
  CHECK_FALSE(mappable(mapped_rows{nullptr, 5, 8, 8, 64}));
}

TEST_CASE("rows of bytes begin at multiples of 16 of them") {
  auto const bytes = [](std::int64_t columns, std::int64_t stride) {
    return mapped_rows{memory, 5, columns, stride, 64, 1};
  };
  CHECK(mappable(bytes(1, 16)));
  CHECK(mappable(bytes(121, 128)));
  CHECK_FALSE(mappable(bytes(8, 8)));
  CHECK_FALSE(mappable(bytes(120, 120)));
  CHECK(mappable(bytes(8, (std::int64_t{1} << 40) - 16)));
  CHECK_FALSE(mappable(bytes(8, std::int64_t{1} << 40)));
  CHECK(mappable(mapped_groups{memory, 3, 5, 9, 80, 16, 64, 1}));
  CHECK(mappable(mapped_groups{memory, 3, 5, 9, 96, 16, 64, 1}));
  CHECK_FALSE(mappable(mapped_groups{memory, 3, 5, 9, 40, 8, 64, 1}));
  CHECK(mappable(mapped_groups{memory, 3, 5, 8, 40, 8, 64, 2}));
  CHECK_FALSE(mappable(mapped_rows{memory, 5, 8, 16, 64, 0}));
  CHECK_FALSE(mappable(mapped_rows{memory, 5, 8, 16, 64, 4}));
}

TEST_CASE("boxes and strides at their limits") {
  CHECK(mappable(mapped_rows{memory, 5, 8, 8, 1}));
  CHECK(mappable(mapped_rows{memory, 5, 8, 8, 256}));
  CHECK_FALSE(mappable(mapped_rows{memory, 5, 8, 8, 0}));
  CHECK_FALSE(mappable(mapped_rows{memory, 5, 8, 8, 257}));
  CHECK(mappable(rows(8, (std::int64_t{1} << 39) - 8)));
  CHECK_FALSE(mappable(rows(8, std::int64_t{1} << 39)));
  CHECK(mappable(mapped_rows{memory, std::int64_t{1} << 31, 8, 8, 64}));
  CHECK_FALSE(mappable(mapped_rows{memory, (std::int64_t{1} << 31) + 1, 8, 8, 64}));
}

TEST_CASE("groups are a whole number of rows apart") {
  CHECK(mappable(groups(80, 16)));
  CHECK(mappable(groups(96, 16)));
  CHECK_FALSE(mappable(groups(64, 16)));
  CHECK_FALSE(mappable(groups(88, 16)));
  CHECK_FALSE(mappable(groups(80, 8)));
  CHECK_FALSE(mappable(mapped_groups{memory, 0, 5, 9, 80, 16, 64}));
}

TEST_CASE("a box brings all of its bytes, inside or not") {
  CHECK(box_bytes(rows(1, 8)) == 64 * 128);
  CHECK(box_bytes(mapped_rows{memory, 5, 8, 16, 64, 1}) == 64 * 128);
  CHECK(box_bytes(mapped_groups{memory, 3, 5, 9, 80, 16, 256}) == 256 * 128);
}
