// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/device_rows.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

using bytes = std::vector<unsigned char>;

std::vector<std::int32_t> shuffled(std::int64_t count, std::mt19937& bits) {
  std::vector<std::int32_t> places(static_cast<std::size_t>(count));
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), bits);
  return places;
}

struct shape {
  std::int64_t rows, width, from_stride, to_stride, from_first = 0, to_first = 0;  // in bytes; where rows begin
};

/// Rows with and without an index on either side, against a loop; bytes between rows stay.
void check(shape const& s) {
  INFO(s.rows, " rows of ", s.width, " bytes, strides ", s.from_stride, " and ", s.to_stride);
  mo::cuda_engine engine{mo::cuda{}};
  std::mt19937 bits(static_cast<unsigned>(s.rows + s.width));
  for (bool const gathered : {false, true})
    for (bool const scattered : {false, true}) {
      bytes source(static_cast<std::size_t>(s.from_first + s.rows * s.from_stride)),
          wanted(static_cast<std::size_t>(s.to_first + s.rows * s.to_stride), 0xff);
      for (unsigned char& b : source) b = static_cast<unsigned char>(bits() % 255);
      auto const from_index = shuffled(s.rows, bits), to_index = shuffled(s.rows, bits);
      testing::device_values<std::int32_t> const from_places(from_index), to_places(to_index);
      testing::device_values<unsigned char> const from(source);
      testing::device_values<unsigned char> to(static_cast<std::int64_t>(wanted.size()));
      mo::detail::copy_rows(engine,
                            {reinterpret_cast<std::byte const*>(from.data()) + s.from_first, s.rows, s.width,
                             s.from_stride, gathered ? from_places.data() : nullptr},
                            {reinterpret_cast<std::byte*>(to.data()) + s.to_first, s.rows, s.width, s.to_stride,
                             scattered ? to_places.data() : nullptr});
      for (std::size_t i = 0; i < from_index.size(); ++i) {
        auto const row = static_cast<std::int64_t>(i);
        std::int64_t const a = gathered ? from_index[i] : row, b = scattered ? to_index[i] : row;
        std::copy_n(source.begin() + s.from_first + a * s.from_stride, s.width,
                    wanted.begin() + s.to_first + b * s.to_stride);
      }
      CHECK(to.host() == wanted);
    }
}

}  // namespace

TEST_CASE("rows of any width are copied from and to any place") {
  check({.rows = 37, .width = 144, .from_stride = 144, .to_stride = 160});
  check({.rows = 5, .width = 4096, .from_stride = 4096, .to_stride = 4096});
  check({.rows = 300, .width = 4, .from_stride = 4, .to_stride = 4});
  check({.rows = 50, .width = 26, .from_stride = 26, .to_stride = 30});
  check({.rows = 20, .width = 40, .from_stride = 48, .to_stride = 40});
  check({.rows = 9, .width = 3, .from_stride = 3, .to_stride = 5});
  check({.rows = 1, .width = 16, .from_stride = 16, .to_stride = 16});
}

TEST_CASE("rows that begin at no multiple of an access are copied by smaller ones") {
  check({.rows = 12, .width = 32, .from_stride = 32, .to_stride = 32, .from_first = 4});
  check({.rows = 12, .width = 32, .from_stride = 32, .to_stride = 32, .to_first = 8});
  check({.rows = 12, .width = 32, .from_stride = 32, .to_stride = 32, .from_first = 2, .to_first = 1});
}

TEST_CASE("more rows than the blocks of a launch take at once") {
  check({.rows = 20000, .width = 16, .from_stride = 16, .to_stride = 16});
}

TEST_CASE("no rows, and rows without bytes, are no launch") {
  mo::cuda_engine engine{mo::cuda{}};
  mo::detail::copy_rows(engine, {}, {});
  mo::detail::copy_rows(engine, {nullptr, 7, 0, 0, nullptr}, {nullptr, 7, 0, 0, nullptr});
  CHECK_NOTHROW(engine.synchronize());
}

TEST_CASE_TEMPLATE("values are added and rounded to their type", V, float, double, mo::bf16, mo::fp16) {
  mo::cuda_engine engine{mo::cuda{}};
  for (std::int64_t const count : {0, 1, 1000, 30000}) {
    std::mt19937 bits(static_cast<unsigned>(count) + 1);
    std::normal_distribution<float> draw;
    std::vector<V> a, b, wanted;
    for (std::int64_t i = 0; i < count; ++i) {
      a.push_back(static_cast<V>(draw(bits))), b.push_back(static_cast<V>(draw(bits)));
      wanted.push_back(static_cast<V>(a.back() + b.back()));
    }
    testing::device_values<V> const from(b);
    testing::device_values<V> to(a);
    mo::detail::add_values(engine, from.data(), count, to.data());
    CHECK(testing::same_bits(to.host(), wanted));
  }
}
