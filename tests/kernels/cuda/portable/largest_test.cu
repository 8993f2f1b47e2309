// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/largest.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace mo = moiety;
namespace gpu = mo::kernels::gpu;

/// kept[l][i] for the lists of `count` keys that lie one after another; each block takes two.
template <class Key>
__global__ void keep_largest(Key const* keys, std::int64_t count, std::int64_t wanted, std::uint8_t* kept) {
  for (unsigned list = 2 * blockIdx.x; list < 2 * blockIdx.x + 2; ++list) {
    Key const* const own = keys + list * count;
    auto const cut = gpu::find_cut<Key>(count, wanted, [&](std::int64_t i) { return own[i]; });
    for (std::int64_t i = threadIdx.x; i < count; i += gpu::cut_threads)
      kept[list * count + i] = cut.keeps(own[i], i) ? 1 : 0;
  }
}

template <class V> __global__ void order_values(V const* values, std::uint64_t* bits) {
  bits[threadIdx.x] = gpu::ordered_bits(values[threadIdx.x]);
}

namespace {

enum class kind { any, low, high, few, equal };

template <class Key> std::vector<Key> draw(kind of, std::int64_t count, std::mt19937_64& words) {
  std::vector<Key> keys;
  for (std::int64_t i = 0; i < count; ++i) {
    auto const word = static_cast<Key>(words());
    keys.push_back(of == kind::any    ? word
                   : of == kind::low  ? word & 0x1ff
                   : of == kind::high ? static_cast<Key>(word << (8 * sizeof(Key) - 3))
                   : of == kind::few  ? static_cast<Key>(word % 3 - 1)
                                      : Key{42});
  }
  return keys;
}

template <class Key> std::vector<bool> by_sorting(Key const* keys, std::int64_t count, std::int64_t wanted) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return keys[a] > keys[b]; });
  std::vector<bool> kept(order.size());
  for (std::int64_t i = 0; i < std::min(count, wanted); ++i)
    kept[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] = true;
  return kept;
}

template <class Key> void check(kind of, std::int64_t count, std::int64_t wanted) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", wanted, " of ", count, " keys of kind ", static_cast<int>(of));
  std::mt19937_64 words(number);
  constexpr std::int64_t lists = 4;
  std::vector<Key> const keys = draw<Key>(of, lists * count, words);
  mo::cuda_engine engine{mo::cuda{}};
  testing::device_values<std::uint8_t> d_kept(lists * count);
  testing::device_values<Key> d_keys(keys);  // waits for the poison
  engine.launch("keep_largest", keep_largest<Key>, {lists / 2, gpu::cut_threads}, d_keys.data(), count, wanted,
                d_kept.data());
  auto const kept = d_kept.host();
  std::vector<bool> wanted_all;
  for (std::int64_t l = 0; l < lists; ++l) {
    auto const one = by_sorting(keys.data() + l * count, count, wanted);
    wanted_all.insert(wanted_all.end(), one.begin(), one.end());
  }
  CHECK(std::vector<bool>(kept.begin(), kept.end()) == wanted_all);
}

}  // namespace

TEST_CASE_TEMPLATE("the largest of a list are those that a stable sort puts first", Key, std::uint32_t, std::uint64_t) {
  for (kind const of : {kind::any, kind::low, kind::high, kind::few, kind::equal})
    for (std::int64_t const count : {0, 1, 2, 37, 256, 257, 1000})
      for (std::int64_t const wanted : {std::int64_t{0}, std::int64_t{1}, count / 3, count - 1, count, count + 5})
        check<Key>(of, count, wanted);
}

TEST_CASE_TEMPLATE("the bits of numbers are ordered as the numbers", V, float, double) {
  using limits = std::numeric_limits<V>;
  std::vector<V> const ascending{
      -limits::infinity(), limits::lowest(), -1, -limits::denorm_min(), 0, limits::denorm_min(), 1, limits::infinity()};
  mo::cuda_engine engine{mo::cuda{}};
  std::vector<V> values = ascending;
  values.push_back(-V{0});
  testing::device_values<std::uint64_t> d_bits(static_cast<std::int64_t>(values.size()));
  testing::device_values<V> d_values(values);
  engine.launch("order_values", order_values<V>, {1, static_cast<int>(values.size())}, d_values.data(), d_bits.data());
  auto const bits = d_bits.host();
  CHECK(std::is_sorted(bits.begin(), bits.begin() + 8));
  CHECK(std::adjacent_find(bits.begin(), bits.begin() + 8) == bits.begin() + 8);
  CHECK(bits[8] == bits[4]);
}
