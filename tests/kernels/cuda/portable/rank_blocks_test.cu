// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/rank_blocks.cuh>

#include "device_memory.hpp"

#include <moiety/core/errors.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;
using mo::kernels::rank_blocks;
using mo::kernels::rows_of;

namespace {

using bytes = std::vector<std::byte>;
using parts = std::vector<mo::range_of>;

bool same(parts const& a, parts const& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](mo::range_of const& x, mo::range_of const& y) {
    return x.first == y.first && x.count == y.count;
  });
}

/// Counts and rows of blocks, without what lies between them.
template <class V> std::vector<std::byte> contents(rank_blocks<V> const& shape, bytes blocks) {
  bytes all;
  for (std::int64_t r = 0; r < shape.ranks; ++r) {
    auto const* const counts = reinterpret_cast<std::byte const*>(shape.counts(blocks.data(), r));
    auto const* const rows = reinterpret_cast<std::byte const*>(shape.rows(blocks.data(), r, 0));
    all.insert(all.end(), counts, counts + shape.experts * 8);
    all.insert(all.end(), rows, rows + shape.experts * shape.most * shape.width * static_cast<std::int64_t>(sizeof(V)));
  }
  return all;
}

template <class V> std::vector<V> random_values(std::int64_t count, std::mt19937& bits) {
  std::normal_distribution<float> draw;
  std::vector<V> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<V>(draw(bits)));
  return values;
}

/// Begins of `experts` of at most `most` rows each, from 0 on.
std::vector<std::int64_t> random_starts(std::int64_t experts, std::int64_t most, std::mt19937& bits) {
  std::vector<std::int64_t> starts{0};
  for (std::int64_t e = 0; e < experts; ++e) {
    std::int64_t const rows = bits() % 4 == 0 ? most : static_cast<std::int64_t>(bits()) % (most + 1);
    starts.push_back(starts.back() + rows);
  }
  return starts;
}

/// Packs, counts and unpacks on a device as the host does, to poisoned memory; rows with and without an index.
template <class V> void check(rank_blocks<V> const& shape, int copies, std::int64_t more_stride) {
  unsigned const seed = std::random_device{}();
  INFO(shape.ranks, " ranks of ", copies, " copies, ", shape.experts, " experts, ", shape.most, " rows of ",
       shape.width, ", seed ", seed);
  std::mt19937 bits(seed);
  mo::cuda_engine engine{mo::cuda{}};
  auto const starts = random_starts(shape.ranks / copies * shape.experts, shape.most, bits);
  std::int64_t const rows = starts.back(), stride = shape.width + more_stride;
  auto const source = random_values<V>((rows + 1) * stride, bits);
  std::vector<std::int32_t> index;
  for (std::int64_t i = 0; i < rows; ++i)
    index.push_back(static_cast<std::int32_t>(static_cast<std::int64_t>(bits()) % rows));
  index.push_back(0);

  parts sent(static_cast<std::size_t>(shape.parts())), arrived(sent.size());
  mo::kernels::list_sent(shape, copies, starts.data(), sent.data());
  testing::device_values<std::int64_t> const d_starts(starts);
  testing::device_values<mo::range_of> d_sent(shape.parts()), d_arrived(shape.parts());
  mo::kernels::list_sent(engine, shape, copies, d_starts.data(), d_sent.data());
  CHECK(same(d_sent.host(), sent));

  bytes blocks(static_cast<std::size_t>(shape.bytes()));
  testing::device_values<V> const d_source(source);
  testing::device_values<std::int32_t> const d_index(index);
  for (bool const gathered : {false, true}) {
    mo::kernels::pack(shape, rows_of<V>{source.data(), stride, gathered ? index.data() : nullptr}, sent.data(),
                      blocks.data());
    testing::device_values<std::byte> d_blocks(shape.bytes());
    mo::kernels::pack(engine, shape, rows_of<V>{d_source.data(), stride, gathered ? d_index.data() : nullptr},
                      d_sent.data(), d_blocks.data());
    CHECK(contents(shape, d_blocks.host()) == contents(shape, blocks));
  }

  std::vector<std::int64_t> offsets(static_cast<std::size_t>(shape.experts + 1));
  for (std::int64_t r = 0; r < shape.ranks; ++r) {  // what copies return differs
    auto const values = random_values<V>(shape.experts * shape.most * shape.width, bits);
    std::copy(values.begin(), values.end(), shape.rows(blocks.data(), r, 0));
  }
  mo::kernels::list_arrived(shape, blocks.data(), arrived.data(), offsets.data());
  testing::device_values<std::byte> d_blocks(blocks);
  testing::device_values<std::int64_t> d_offsets(shape.experts + 1);
  mo::kernels::list_arrived(engine, shape, d_blocks.data(), d_arrived.data(), d_offsets.data());
  CHECK(same(d_arrived.host(), arrived));
  CHECK(d_offsets.host() == offsets);

  auto const check_unpacked = [&](std::int64_t count, parts const& places, mo::range_of const* d_places, int added) {
    std::vector<V> to(static_cast<std::size_t>((count + 2) * shape.width), testing::poison<V>());
    testing::device_values<V> d_to((count + 2) * shape.width);
    mo::kernels::unpack(shape, blocks.data(), places.data(), added, to.data());
    mo::kernels::unpack(engine, shape, d_blocks.data(), d_places, added, d_to.data());
    CHECK(testing::same_bits(d_to.host(), to));
  };
  check_unpacked(offsets.back(), arrived, d_arrived.data(), 1);
  check_unpacked(rows, sent, d_sent.data(), copies);
  CHECK_NOTHROW(engine.synchronize());
}

}  // namespace

TEST_CASE_TEMPLATE("a device packs, counts and unpacks blocks as the host does", V, float, double, mo::bf16, mo::fp16) {
  check<V>({1, 5, 4, 16}, 1, 0);
  check<V>({4, 3, 7, 24}, 1, 8);
  check<V>({4, 2, 5, 13}, 2, 3);  // no access of 16 bytes
  check<V>({6, 1, 9, 1}, 3, 0);
  check<V>({8, 4, 2, 2048}, 4, 0);
  check<V>({2, 300, 3, 8}, 1, 0);  // more experts than threads of a block
}

TEST_CASE("more rows than the blocks of a launch take at once") { check<float>({4, 8, 700, 4}, 2, 0); }

TEST_CASE("blocks without room for a row") { check<float>({4, 8, 0, 4}, 2, 0); }

TEST_CASE("more rows than there is room for are left out, and come out of the next synchronize") {
  mo::cuda_engine engine{mo::cuda{}};
  rank_blocks<float> const shape{2, 1, 3, 2};
  testing::device_values<std::int64_t> const starts(std::vector<std::int64_t>{0, 5, 6});
  testing::device_values<mo::range_of> sent(2);
  mo::kernels::list_sent(engine, shape, 1, starts.data(), sent.data());
  CHECK(same(sent.host(), {{0, 3}, {5, 1}}));
  CHECK_THROWS_WITH_AS(engine.synchronize(),
                       "an expert was given 5 rows, where blocks between ranks have room for fewer.", mo::data_error);
  for (std::int64_t const wrong : {-2, 4}) {
    bytes blocks(static_cast<std::size_t>(shape.bytes()));
    shape.counts(blocks.data(), 0)[0] = wrong;
    shape.counts(blocks.data(), 1)[0] = 2;
    testing::device_values<std::byte> d_blocks(blocks);
    testing::device_values<mo::range_of> arrived(2);
    testing::device_values<std::int64_t> offsets(2);
    mo::kernels::list_arrived(engine, shape, d_blocks.data(), arrived.data(), offsets.data());
    std::int64_t const taken = wrong < 0 ? 0 : 3;
    CHECK(same(arrived.host(), {{0, taken}, {taken, 2}}));
    CHECK(offsets.host() == std::vector<std::int64_t>{0, taken + 2});
    CHECK_THROWS_AS(engine.synchronize(), mo::data_error);
  }
}
