// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/largest.hpp>

#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace mo = moiety;

namespace {

/// The K largest by a stable sort; fewer where NaN leaves fewer.
template <class S> std::vector<int> sorted(std::vector<S> const& values, std::size_t k) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  auto const at = [&](int i) { return values[static_cast<std::size_t>(i)]; };
  std::erase_if(order, [&](int i) { return std::isnan(at(i)); });
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return at(a) > at(b); });
  order.resize(std::min(order.size(), k));
  return order;
}

template <int K, class S> std::vector<int> found(std::vector<S> const& values) {
  std::vector<int> indices;
  bool const all = mo::detail::find_largest<K>(values.data(), static_cast<int>(values.size()), [&](int rank, int i) {
    CHECK(rank == static_cast<int>(indices.size()));
    indices.push_back(i);
  });
  CHECK(all == !indices.empty());
  return indices;
}

/// Whether what was found, if anything, is right; counts what was.
template <int K, class S> void check(std::vector<S> const& values, int& times) {
  std::vector<int> const indices = found<K>(values);
  if (indices.empty()) return;
  CHECK(indices == sorted(values, K));
  ++times;
}

}  // namespace

TEST_CASE_TEMPLATE("distinct values are found at any length, as a sort finds them", S, float, double) {
  std::uint64_t next = 0;
  int times = 0, asked = 0;
  for (std::size_t size = 1; size <= 300; ++size) {
    std::vector<S> values(size);
    for (S& v : values) v = static_cast<S>(mo::random_word(mo::seed{5}, 0, next++) >> 8) * static_cast<S>(0x1p-24) - 1;
    check<1>(values, times), check<2>(values, times), check<7>(values, times), check<8>(values, times);
    check<9>(values, times), check<16>(values, times);
    for (std::size_t const k : {1u, 2u, 7u, 8u, 9u, 16u}) asked += size >= k ? 1 : 0;
  }
  CHECK(times > asked * 9 / 10);
  CHECK(times <= asked);
}

TEST_CASE_TEMPLATE("with equal values, infinities and NaN it is right or gives up", S, float, double) {
  S const infinity = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
  std::uint64_t next = 0;
  int times = 0;
  for (std::size_t size = 1; size <= 100; ++size)
    for (std::uint32_t const kinds : {3u, 20u, 400u}) {
      std::vector<S> values(size);
      for (S& v : values) {
        std::uint32_t const drawn = mo::random_word(mo::seed{6}, kinds, next++) % kinds;
        v = drawn == 0 ? nan : (drawn == 1 ? -infinity : (drawn == 2 ? infinity : static_cast<S>(drawn)));
      }
      check<1>(values, times), check<4>(values, times), check<8>(values, times), check<12>(values, times);
    }
  CHECK(times > 100);
}

TEST_CASE("it gives up where more than 16 are asked, too few are left, or all are equal") {
  std::vector<float> values(100);
  std::iota(values.begin(), values.end(), 0.0f);
  CHECK(found<16>(values).size() == 16);
  CHECK(found<17>(values).empty());
  CHECK(found<8>(std::vector<float>(7, 1.0f)).empty());
  CHECK(found<2>(std::vector<float>(200, 1.0f)).empty());
  CHECK(found<1>(std::vector<float>{}).empty());
}
