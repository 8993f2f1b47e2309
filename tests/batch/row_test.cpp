// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/row.hpp>

#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

std::vector<float> values(int n, unsigned seed) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) seed = seed * 1664525u + 1013904223u, x = static_cast<float>(seed >> 8) * 0x1p-23f - 1;
  return v;
}

mo::span_row<float> row(std::vector<float>& v) { return {v.data(), static_cast<std::int64_t>(v.size())}; }

/// The stated order, written again: 32 lanes, folded in halves.
template <class Term, class Join> float in_lanes(std::size_t n, Term const& term, Join const& join) {
  std::vector<float> lane(32, 0.0f);
  for (std::size_t i = 0; i < n; ++i) lane[i % 32] = join(lane[i % 32], term(i), i);
  for (std::size_t half = 16; half >= 1; half /= 2)
    for (std::size_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

}  // namespace

static_assert(mo::score_row<mo::span_row<float>> && !mo::score_row<int> && !mo::score_row<std::vector<float>>);

TEST_CASE("sums and products have the stated order, bit for bit, at any length") {
  for (int n = 0; n <= 130; ++n) {
    auto a = values(n, 7), b = values(n, 11);
    auto const at = [&](std::size_t i) { return a[i]; };
    CHECK(row(a).sum() == in_lanes(a.size(), at, [](float s, float v, std::size_t) { return s + v; }));
    CHECK(row(a).sum([](float v) { return v * 2; }) == 2 * row(a).sum());
    CHECK(mo::dot(row(a), row(b)) ==
          in_lanes(a.size(), at, [&](float s, float v, std::size_t i) { return mo::fma(v, b[i], s); }));
  }
}

TEST_CASE("max, argmax and remove") {
  float const infinity = std::numeric_limits<float>::infinity();
  std::vector<float> v{1, 5, 2, 5, -3};
  CHECK(row(v).max() == 5);
  CHECK(row(v).argmax() == 1);
  row(v).remove(1);
  CHECK(row(v).argmax() == 3);
  row(v).remove(3);
  CHECK(row(v).argmax() == 2);
  for (int i : {0, 2, 4}) row(v).remove(i);
  CHECK(row(v).argmax() == -1);
  std::vector<float> lowest{-infinity, -infinity};
  CHECK(row(lowest).argmax() == 0);
  row(lowest).remove(0);
  CHECK(row(lowest).argmax() == 1);
}

TEST_CASE("where fewer than K values are left the rest are -1, and removing what is not there does nothing") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> v(20, nan);
  v[4] = 1, v[17] = 2;
  std::vector<int> found;
  row(v).largest<4>([&](int, int i) { found.push_back(i); });
  CHECK(found == std::vector{17, 4, -1, -1});
  std::vector<float> kept{1, 2, 3};
  mo::span_row<float> const middle(kept.data() + 1, 1);
  for (int const i : {-1, 1, std::numeric_limits<int>::min(), std::numeric_limits<int>::max()}) middle.remove(i);
  CHECK(kept == std::vector<float>{1, 2, 3});
}

TEST_CASE("the largest come in the order of argmax, found at once or one by one") {
  float const infinity = std::numeric_limits<float>::infinity();
  for (std::size_t const size : {5u, 64u, 130u})
    for (int const ties : {0, 1}) {
      std::vector<float> v = values(static_cast<int>(size), 5), one_by_one = v;
      if (ties == 1) v[3] = v[1] = infinity, v[4] = v[0] = -infinity, one_by_one = v;
      std::vector<int> found;
      row(v).largest<4>([&](int rank, int i) {
        CHECK(rank == static_cast<int>(found.size()));
        found.push_back(i);
      });
      for (int const i : found) {
        CHECK(i == row(one_by_one).argmax());
        row(one_by_one).remove(i);
      }
      CHECK(found.size() == 4);
    }
}

TEST_CASE_TEMPLATE("the sum of the largest is that of a sorted copy, of values that are left alone", S, float, double) {
  S const infinity = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
  std::uint64_t next = 0;
  for (std::size_t size = 1; size <= 40; ++size)
    for (int round = 0; round < 20; ++round) {
      std::vector<S> values;
      for (std::size_t i = 0; i < size; ++i) {
        std::uint32_t const word = mo::random_word(mo::seed{8}, 0, next++);
        values.push_back(word % 9 == 0 ? -infinity : word % 9 == 1 ? nan : static_cast<S>(word >> 8) / 3 - 1000000);
      }
      std::vector<S> const before = values;
      std::size_t const first = mo::random_word(mo::seed{8}, 1, next++) % size,
                        last = first + mo::random_word(mo::seed{8}, 2, next++) % (size - first + 1);
      std::vector<S> sorted;
      for (std::size_t i = first; i < last; ++i)
        if (values[i] > -infinity) sorted.push_back(values[i]);
      std::sort(sorted.begin(), sorted.end(), std::greater<>{});
      auto const sum = [&](std::size_t most) {
        S total = sorted.empty() ? -infinity : sorted[0];
        for (std::size_t i = 1; i < std::min(most, sorted.size()); ++i) total += sorted[i];
        return total;
      };
      mo::span_row<S> const row(values.data(), static_cast<std::int64_t>(size));
      int const a = static_cast<int>(first), b = static_cast<int>(last);
      CHECK(row.template sum_of_largest<1>(a, b) == sum(1));
      CHECK(row.template sum_of_largest<2>(a, b) == sum(2));
      CHECK(row.template sum_of_largest<5>(a, b) == sum(5));
      CHECK(std::memcmp(values.data(), before.data(), size * sizeof(S)) == 0);
    }
}

TEST_CASE("the sum of the largest of nothing is minus infinity, and negative values count") {
  float const infinity = std::numeric_limits<float>::infinity();
  std::vector<float> v{-3, -1, -2, 5};
  CHECK(row(v).sum_of_largest<2>(0, 3) == -3);
  CHECK(row(v).sum_of_largest<4>(0, 3) == -6);
  CHECK(row(v).sum_of_largest<2>(1, 1) == -infinity);
  std::vector<float> zeros{-0.0f, -infinity, -0.0f};
  CHECK(std::signbit(row(zeros).sum_of_largest<5>(0, 1)));
  CHECK(std::signbit(row(zeros).sum_of_largest<5>(0, 3)));
}

TEST_CASE("map, alone, with another row, with the index") {
  std::vector<float> a{1, 2, 3}, b{10, 20, 30};
  row(a).map([](float v) { return v + 1; });
  CHECK(a == std::vector<float>{2, 3, 4});
  row(a).map(row(b), [](float v, float o) { return o - v; });
  CHECK(a == std::vector<float>{8, 17, 26});
  row(a).map_indexed([](float v, int i) { return v * static_cast<float>(i); });
  CHECK(a == std::vector<float>{0, 17, 52});
  for (std::size_t size = 0; size <= 70; ++size) {
    std::vector<float> wide(size, 1.0f), other(size, 2.0f);
    row(wide).map_indexed([](float v, int i) { return v + static_cast<float>(i); });
    row(wide).map(row(other), [](float v, float o) { return v * o; });
    row(wide).map([](float v) { return v - 1; });
    for (std::size_t i = 0; i < size; ++i) CHECK(wide[i] == 2 * static_cast<float>(i) + 1);
  }
  CHECK(row(a).size() == 3);
  CHECK(row(a)[2] == 52);
  CHECK(row(a).data() == a.data());
}

TEST_CASE_TEMPLATE("max and argmax are those of a plain loop, with ties, removed values and infinities", S, float,
                   double) {
  S const infinity = std::numeric_limits<S>::infinity();
  std::uint64_t next = 0;
  for (std::size_t size = 1; size <= 100; ++size)
    for (std::size_t round = 0; round < 20; ++round) {
      std::vector<S> values;
      for (std::size_t i = 0; i < size; ++i) {
        std::uint32_t const drawn = mo::random_word(mo::seed{3}, 0, next++) % 12;
        values.push_back(drawn == 0 ? -infinity : (drawn == 1 ? infinity : static_cast<S>(drawn % 4)));
      }
      mo::span_row<S> const all(values.data(), static_cast<std::int64_t>(size));
      for (std::size_t removed = 0; removed < round; ++removed)
        all.remove(static_cast<int>(mo::random_word(mo::seed{4}, 0, next++) % size));
      int best = -1;
      for (std::size_t i = 0; i < size; ++i)
        if (!std::isnan(values[i]) && (best < 0 || values[i] > values[static_cast<std::size_t>(best)]))
          best = static_cast<int>(i);
      CHECK(all.argmax() == best);
      CHECK(all.max() == (best < 0 ? -infinity : values[static_cast<std::size_t>(best)]));
    }
}
