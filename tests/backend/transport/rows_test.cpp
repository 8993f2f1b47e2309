// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/rows.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

TEST_CASE("slices of n values follow one another, and differ by one value at most") {
  for (std::int64_t const n : {0, 1, 5, 6, 7, 1000})
    for (int const size : {1, 2, 3, 7}) {
      std::int64_t next = 0;
      for (int r = 0; r < size; ++r) {
        mo::range_of const slice = mo::slice_of(n, r, size);
        CHECK(slice.first == next);
        CHECK(slice.count >= n / size);
        CHECK(slice.count <= (n + size - 1) / size);
        if (r > 0) CHECK(slice.count <= mo::slice_of(n, r - 1, size).count);
        next += slice.count;
        CHECK(mo::slice_counts(n, size)[static_cast<std::size_t>(r)] == slice.count);
      }
      CHECK(next == n);
      CHECK(mo::slice_counts(n, size).size() == static_cast<std::size_t>(size));
    }
  std::int64_t const large = std::numeric_limits<std::int64_t>::max();
  CHECK(mo::slice_of(large, 2, 3).first + mo::slice_of(large, 2, 3).count == large);
}

TEST_CASE("rows and bytes are counted in 64 bits") {
  auto* const begin = reinterpret_cast<std::byte*>(std::uintptr_t{4096});
  mo::incoming_rows const many{begin, std::int64_t{1} << 33, 4096, 8192, nullptr};
  CHECK(many.bytes() == std::int64_t{1} << 45);
  CHECK(many.row((std::int64_t{1} << 33) - 1) - begin == 8192 * ((std::int64_t{1} << 33) - 1));
  std::array<std::int32_t, 1> const last{std::numeric_limits<std::int32_t>::max()};
  mo::incoming_rows const listed{begin, 1, 4096, 8192, last.data()};
  CHECK(listed.row(0) - begin == 8192 * std::int64_t{last[0]});
}

TEST_CASE("rows are one piece where each begins at the end of the one before") {
  std::array<std::byte, 12> memory{};
  std::array<std::int32_t, 3> const index{0, 1, 2};
  CHECK(mo::incoming_rows{memory.data(), 3, 4, 4, nullptr}.whole());
  CHECK(mo::incoming_rows{memory.data(), 1, 4, 9, nullptr}.whole());
  CHECK_FALSE(mo::incoming_rows{memory.data(), 2, 4, 8, nullptr}.whole());
  CHECK_FALSE(mo::incoming_rows{memory.data(), 3, 4, 4, index.data()}.whole());
}

TEST_CASE("rows agree in size where number and width do, not where only the bytes do") {
  mo::outgoing_rows const six{nullptr, 6, 4, 4, nullptr};
  CHECK(six.same_size(mo::incoming_rows{nullptr, 6, 4, 100, nullptr}));
  CHECK_FALSE(six.same_size(mo::incoming_rows{nullptr, 3, 8, 8, nullptr}));
  CHECK_FALSE(six.same_size(mo::incoming_rows{nullptr, 5, 4, 4, nullptr}));
  CHECK(mo::outgoing_rows{}.same_size(mo::incoming_rows{nullptr, 0, 4, 4, nullptr}));
}

TEST_CASE("parts are compared by rows that have no bytes") {
  std::array<std::int64_t, 3> const counts{5, 0, 7};
  auto const [to, from] = mo::detail::rows_of_parts(counts, 2);
  REQUIRE(to.size() == 3);
  REQUIRE(from.size() == 3);
  for (std::size_t r = 0; r < 3; ++r) {
    CHECK(to[r].rows == counts[r]);
    CHECK(from[r].rows == 7);
    CHECK(to[r].bytes() + from[r].bytes() == 0);
  }
  CHECK(mo::detail::rows_of_parts({}, 0).first.empty());
}

TEST_CASE("rows are copied from where they lie to where they belong") {
  std::vector<std::int32_t> from(20), to(20, -1);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::int32_t>(i);
  std::array<std::int32_t, 3> const gathered{4, 0, 2}, placed{1, 3, 0};
  mo::outgoing_rows const out{reinterpret_cast<std::byte const*>(from.data()), 3, 8, 16, gathered.data()};
  mo::incoming_rows const in{reinterpret_cast<std::byte*>(to.data()), 3, 8, 12, placed.data()};
  mo::detail::copy_rows(out, in);
  CHECK(to == std::vector<std::int32_t>{8, 9, -1, 16, 17, -1, -1, -1, -1, 0, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1});
}

TEST_CASE("rows of any width arrive the same past the caches, and nothing beside them changes") {
  std::vector<std::int32_t> const index{7, 0, 3, 3, 5};
  for (std::int64_t const width : {1, 63, 64, 200, 1024, 4100}) {
    std::int64_t const stride = width + 5;
    std::vector<std::byte> from(static_cast<std::size_t>(8 * stride));
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7 % 251);
    for (bool const listed : {false, true})
      for (mo::stores const how : {mo::stores::cached, mo::stores::streamed}) {
        mo::outgoing_rows const out{from.data(), 5, width, stride, listed ? index.data() : nullptr};
        std::vector<std::byte> to(static_cast<std::size_t>(5 * (width + 3)), std::byte{0xee}), expected = to;
        mo::detail::copy_rows(out, {to.data(), 5, width, width + 3, nullptr}, how);
        for (std::int64_t i = 0; i < 5; ++i) std::copy_n(out.row(i), width, expected.data() + i * (width + 3));
        CHECK(to == expected);
      }
    mo::outgoing_rows const piece{from.data() + 1, 7, width, width, nullptr};
    std::vector<std::byte> to(static_cast<std::size_t>(piece.bytes()));
    mo::detail::copy_rows(piece, {to.data(), 7, width, width, nullptr}, mo::stores::streamed);
    CHECK(std::equal(to.begin(), to.end(), from.begin() + 1));
  }
}

TEST_CASE("operations agree in all that is common, and say it") {
  mo::rank_operation const gather{.name = "all_gather", .width = 8, .count = 3};
  mo::rank_operation const broadcast{.name = "broadcast", .width = 8, .count = 3, .root = 1};
  CHECK(gather == mo::rank_operation{.name = "all_gather", .width = 8, .count = 3});
  CHECK_FALSE(gather == mo::rank_operation{.name = "all_gather", .width = 4, .count = 3});
  CHECK_FALSE(gather == mo::rank_operation{.name = "all_gather", .width = 8, .count = 4});
  CHECK_FALSE(gather == mo::rank_operation{.name = "all_to_all", .width = 8, .count = 3});
  CHECK_FALSE(broadcast == mo::rank_operation{.name = "broadcast", .width = 8, .count = 3, .root = 0});
  CHECK(broadcast.words() == "broadcast of elements of 8 bytes, 3 of them, root 1");
}
