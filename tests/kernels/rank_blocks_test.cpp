// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/rank_blocks.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mo = moiety;
using mo::kernels::rank_blocks;

namespace {

/// Two ranks with two experts each, three rows of two values at most of each.
struct problem {
  rank_blocks<float> shape{2, 2, 3, 2};
  std::array<std::int64_t, 5> starts{0, 2, 2, 5, 6};
  std::array<mo::range_of, 4> parts{};
  std::vector<std::byte> blocks = std::vector<std::byte>(256, std::byte{0xff});
  std::array<float, 12> rows{0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50, 51};

  problem() { REQUIRE(mo::kernels::list_sent(shape, 1, starts.data(), parts.data()) == 0); }
  float* values(std::int64_t rank) { return shape.rows(blocks.data(), rank, 0); }
};

}  // namespace

TEST_CASE("blocks and what is in them begin at whole lines, whatever their size") {
  rank_blocks<float> const small{2, 2, 3, 2}, large{3, 9, 5, 7};
  CHECK(small.block_bytes() == 64 + 64);
  CHECK(large.block_bytes() == 128 + 1280);
  CHECK(large.bytes() == 3 * large.block_bytes());
  CHECK(rank_blocks<double>{1, 1, 0, 4}.block_bytes() == 64);
  std::vector<std::byte> memory(static_cast<std::size_t>(large.bytes()));
  CHECK(reinterpret_cast<std::byte*>(large.rows(memory.data(), 2, 4)) - memory.data() ==
        2 * large.block_bytes() + 128 + 4 * 5 * 7 * 4);
}

TEST_CASE_FIXTURE(problem, "rows are packed by rank and expert, and what is left is zeros") {
  mo::kernels::pack(shape, mo::kernels::rows_of<float>{rows.data(), 2}, parts.data(), blocks.data());
  CHECK(shape.counts(blocks.data(), 0)[0] == 2);
  CHECK(shape.counts(blocks.data(), 0)[1] == 0);
  CHECK(shape.counts(blocks.data(), 1)[0] == 3);
  CHECK(shape.counts(blocks.data(), 1)[1] == 1);
  std::vector<float> const first(values(0), values(0) + 16), second(values(1), values(1) + 16);
  CHECK(first == std::vector<float>{0, 1, 10, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  CHECK(second == std::vector<float>{20, 21, 30, 31, 40, 41, 50, 51, 0, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE_FIXTURE(problem, "rows may lie anywhere") {
  std::array<std::int32_t, 6> const index{5, 4, 3, 2, 1, 0};
  mo::kernels::pack(shape, mo::kernels::rows_of<float>{rows.data(), 2, index.data()}, parts.data(), blocks.data());
  CHECK(std::vector<float>(values(1), values(1) + 8) == std::vector<float>{30, 31, 20, 21, 10, 11, 0, 1});
}

TEST_CASE_FIXTURE(problem, "rows that came are by expert, then rank") {
  mo::kernels::pack(shape, mo::kernels::rows_of<float>{rows.data(), 2}, parts.data(), blocks.data());
  std::array<mo::range_of, 4> there{};
  std::array<std::int64_t, 3> offsets{};
  CHECK(mo::kernels::list_arrived(shape, blocks.data(), there.data(), offsets.data()) == 0);
  CHECK(offsets == std::array<std::int64_t, 3>{0, 5, 6});
  std::array<std::int64_t, 4> firsts{}, counts{};
  for (std::size_t i = 0; i < 4; ++i) firsts[i] = there[i].first, counts[i] = there[i].count;
  CHECK(firsts == std::array<std::int64_t, 4>{0, 5, 2, 5});
  CHECK(counts == std::array<std::int64_t, 4>{2, 0, 3, 1});
  std::array<float, 14> to;
  to.fill(-1);
  mo::kernels::unpack(shape, blocks.data(), there.data(), 1, to.data());
  CHECK(to == std::array<float, 14>{0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50, 51, -1, -1});
}

TEST_CASE_FIXTURE(problem, "rows of copies go to the same places, and are added in the order of ranks") {
  std::array<std::int64_t, 3> const begins{1, 3, 4};
  CHECK(mo::kernels::list_sent(shape, 2, begins.data(), parts.data()) == 0);
  for (std::size_t i = 0; i < 4; ++i) CHECK(parts[i].first == begins[i % 2]);
  std::fill_n(values(0), 12, 1.0f);
  std::fill_n(values(1), 12, 0x1p-24f);
  values(1)[0] = 0x1p-23f;
  std::array<float, 10> to;
  to.fill(-1);
  mo::kernels::unpack(shape, blocks.data(), parts.data(), 2, to.data());
  CHECK(to == std::array<float, 10>{-1, -1, 1 + 0x1p-23f, 1, 1, 1, 1, 1, -1, -1});
}

TEST_CASE_FIXTURE(problem, "more rows than there is room for are refused, on both sides") {
  starts[3] = 6;
  CHECK(mo::kernels::list_sent(shape, 1, starts.data(), parts.data()) == 4);
  std::array<std::int64_t, 3> offsets{};
  for (std::int64_t const wrong : {-1, 4}) {
    std::fill(blocks.begin(), blocks.end(), std::byte{});
    shape.counts(blocks.data(), 1)[1] = wrong;
    CHECK(mo::kernels::list_arrived(shape, blocks.data(), parts.data(), offsets.data()) == wrong);
  }
}
