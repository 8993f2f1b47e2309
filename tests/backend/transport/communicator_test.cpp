// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/communicator.hpp>

#include "backend/transport/thread_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace {

using ranks_of = mo::thread_communicator;

struct triple {  // 24 bytes
  std::int64_t a = 0;
  double b = 0;
  std::int32_t c = 0, d = 0;

  friend bool operator==(triple const&, triple const&) = default;
  triple& operator+=(triple const& o) {
    a += o.a;
    b += o.b;
    c += o.c;
    d += o.d;
    return *this;
  }
};
static_assert(sizeof(triple) == 24);

/// Tells rank and place.
template <class T> T value_of(int rank, std::int64_t i) { return static_cast<T>(rank * 1000003 + i); }
template <> char value_of<char>(int rank, std::int64_t i) { return static_cast<char>((rank * 37 + i) % 120 / 8); }
template <> triple value_of<triple>(int rank, std::int64_t i) {
  return {rank * 7 + i, 0.25 * static_cast<double>(i), rank, static_cast<std::int32_t>(i)};
}

template <class T> std::vector<T> values_of(int rank, std::int64_t n, std::int64_t first = 0) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < n; ++i) values.push_back(value_of<T>(rank, first + i));
  return values;
}

template <class T> std::vector<T> joined(std::vector<T> a, std::vector<T> const& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// The values of all ranks added up in the order of the ranks.
template <class T> std::vector<T> sum_of(int ranks, std::int64_t n) {
  std::vector<T> sum = values_of<T>(0, n);
  for (int r = 1; r < ranks; ++r)
    for (std::int64_t i = 0; i < n; ++i) mo::detail::add_to()(sum[static_cast<std::size_t>(i)], value_of<T>(r, i));
  return sum;
}

template <class T> void check_copies(ranks_of& ranks, std::int64_t n) {
  int const me = ranks.rank();
  for (int root = 0; root < ranks.size(); ++root) {
    std::vector<T> values = values_of<T>(me, n);
    ranks.broadcast(std::span(values), root);
    expect(values == values_of<T>(root, n), "broadcast");
  }
  std::vector<T> const mine = values_of<T>(me, n);
  std::vector<T> by_rank, uneven, all(mine.size() * static_cast<std::size_t>(ranks.size()));
  for (int r = 0; r < ranks.size(); ++r) {
    by_rank = joined(by_rank, values_of<T>(r, n));
    uneven = joined(uneven, values_of<T>(r, n * r % 5));
  }
  ranks.all_gather<T>(mine, all);
  expect(all == by_rank, "all_gather");
  expect(ranks.all_gather_v<T>(values_of<T>(me, n * me % 5)) == uneven, "all_gather_v");
}

template <class T> void check_exchanges(ranks_of& ranks, std::int64_t n) {
  int const me = ranks.rank();
  auto const count = [&](int from, int to) { return (from * 3 + to * 5 + n) % 4 * (n + 1) / 2; };
  std::vector<T> out, in, out_v, in_v;
  std::vector<std::int64_t> out_counts, in_counts;
  for (int r = 0; r < ranks.size(); ++r) {
    out = joined(out, values_of<T>(me, n, 50 * r));
    in = joined(in, values_of<T>(r, n, 50 * me));
    out_counts.push_back(count(me, r));
    in_counts.push_back(count(r, me));
    out_v = joined(out_v, values_of<T>(me, count(me, r), 70 * r));
    in_v = joined(in_v, values_of<T>(r, count(r, me), 70 * me));
  }
  std::vector<T> got(in.size()), got_v(in_v.size());
  ranks.all_to_all<T>(out, got);
  expect(got == in, "all_to_all");
  ranks.all_to_all_v<T>(out_v, out_counts, got_v, in_counts);
  expect(got_v == in_v, "all_to_all_v");
}

template <class T> void check_sums(ranks_of& ranks, std::int64_t n) {
  std::vector<T> const sum = sum_of<T>(ranks.size(), n), mine = values_of<T>(ranks.rank(), n);
  std::vector<T> values = mine;
  ranks.all_reduce(std::span(values));
  expect(values == sum, "all_reduce");

  values = mine;
  ranks.reduce_scatter(std::span(values));
  mo::range_of const slice = mo::slice_of(n, ranks.rank(), ranks.size());
  for (std::int64_t i = 0; i < n; ++i) {
    auto const at = static_cast<std::size_t>(i);
    bool const reduced = i >= slice.first && i < slice.first + slice.count;
    expect(values[at] == (reduced ? sum[at] : mine[at]), "reduce_scatter");
  }
  ranks.all_gather_slices(std::span(values));
  expect(values == sum, "all_gather_slices");
}

/// Parts of n values that differ in size; every third is empty, and the last has what is left.
std::vector<std::int64_t> parts_of(std::int64_t n, int ranks) {
  std::vector<std::int64_t> counts;
  for (int r = 0; r + 1 < ranks; n -= counts.back(), ++r) counts.push_back(r % 3 == 1 ? 0 : n / (3 + r));
  counts.push_back(n);
  return counts;
}

template <class T> void check_parts(ranks_of& ranks, std::int64_t n) {
  std::vector<T> const sum = sum_of<T>(ranks.size(), n), mine = values_of<T>(ranks.rank(), n);
  auto const counts = parts_of(n, ranks.size());
  auto const part = counts.begin() + ranks.rank();
  std::int64_t const first = std::accumulate(counts.begin(), part, std::int64_t{0});
  std::vector<T> wanted = mine, values = mine, fastest = mine;
  std::copy_n(sum.begin() + first, *part, wanted.begin() + first);
  ranks.reduce_scatter_v(std::span(values), counts);
  expect(values == wanted, "reduce_scatter_v");
  ranks.reduce_scatter_fastest(std::span(fastest), counts);
  expect(fastest == wanted, "reduce_scatter_fastest");
  fastest = mine;
  ranks.all_reduce_fastest(std::span(fastest));
  expect(fastest == sum, "all_reduce_fastest");
}

/// Values of many sizes, of which sums in another order differ.
std::vector<float> noise(int rank, std::size_t n) {
  std::mt19937 random(static_cast<unsigned>(rank) + 1);
  std::vector<float> values(n);
  for (float& v : values) {
    auto const bits = random();
    v = std::ldexp(static_cast<float>(bits % 65536) / 65536.F - 0.5F, static_cast<int>(bits / 65536 % 24));
  }
  return values;
}

std::vector<float> sum_of_noise(std::vector<int> const& order, std::size_t n) {
  std::vector<float> sum = noise(order[0], n);
  for (std::size_t r = 1; r < order.size(); ++r) {
    auto const more = noise(order[r], n);
    for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
  }
  return sum;
}

bool same_bits(std::span<float const> a, std::span<float const> b) {
  return std::ranges::equal(a, b, {}, std::bit_cast<std::uint32_t, float>, std::bit_cast<std::uint32_t, float>);
}

}  // namespace

TEST_CASE_TEMPLATE("collectives of any number of ranks and of values", T, std::int64_t, double, triple, char) {
  for (int const size : {1, 2, 3, 4, 7})
    on_ranks(size, [](ranks_of& ranks) {
      for (std::int64_t const n : {0, 1, 5, 130}) {
        check_copies<T>(ranks, n);
        check_exchanges<T>(ranks, n);
        check_sums<T>(ranks, n);
        check_parts<T>(ranks, n);
        ranks.barrier();
      }
      check_sums<T>(ranks, 20001);  // by reduce_scatter in all types
      check_parts<T>(ranks, 20001);
    });
}

TEST_CASE("sums of float add the ranks in their order, on every rank, whether few values or many") {
  for (int const size : {2, 3, 4, 7})
    for (std::size_t const n : {std::size_t{1000}, std::size_t{4096}, std::size_t{4097}, std::size_t{9001}}) {
      std::vector<int> order(static_cast<std::size_t>(size));
      std::iota(order.begin(), order.end(), 0);
      auto const sum = sum_of_noise(order, n);
      std::rotate(order.begin(), order.begin() + 1, order.end());
      if (size > 2) REQUIRE_FALSE(same_bits(sum, sum_of_noise(order, n)));  // the data tells orders apart
      on_ranks(size, [&](ranks_of& ranks) {
        auto values = noise(ranks.rank(), n);
        ranks.all_reduce(std::span(values));
        expect(same_bits(values, sum), "all_reduce");
        values = noise(ranks.rank(), n);
        ranks.reduce_scatter(std::span(values));
        ranks.all_gather_slices(std::span(values));
        expect(same_bits(values, sum), "in two halves");
        values = noise(ranks.rank(), n);
        ranks.all_reduce_fastest(std::span(values));
        expect(same_bits(values, sum), "no order is faster than that of the ranks");
      });
    }
}

TEST_CASE("a reduction is of any function") {
  auto const largest = [](int& a, int b) { a = std::max(a, b); };
  for (std::size_t const n : {std::size_t{3}, std::size_t{10000}})
    on_ranks(3, [&](ranks_of& ranks) {
      std::vector<int> values(n);
      for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<int>(i) * (static_cast<int>(i) % 3 == ranks.rank());
      ranks.all_reduce(std::span(values), largest);
      for (std::size_t i = 0; i < n; ++i) expect(values[i] == static_cast<int>(i), "largest");
    });
}

TEST_CASE("nobody passes a barrier before all have come") {
  std::atomic<int> come{0};
  on_ranks(4, [&](ranks_of& ranks) {
    for (int round = 1; round <= 50; ++round) {
      ++come;
      ranks.barrier();
      expect(come.load() == 4 * round, "a rank is missing, or has gone on");
      ranks.barrier();
    }
  });
}

TEST_CASE("wrong arguments are data_errors of the rank that gave them") {
  thread_ranks threads(1);
  mo::thread_communicator ranks(threads.group, 0);
  std::vector<int> three(3), four(4);
  std::vector<std::int64_t> const of_three{3}, of_two{2}, of_none{}, negative{-1}, of_two_ranks{1, 2};
  CHECK_THROWS_WITH_AS(ranks.broadcast(std::span(three), 1), "broadcast was given root 1 of 1 ranks.", mo::data_error);
  CHECK_THROWS_AS(ranks.broadcast(std::span(three), -1), mo::data_error);
  CHECK_THROWS_AS(ranks.all_gather<int>(three, four), mo::data_error);
  CHECK_THROWS_AS(ranks.all_to_all<int>(three, four), mo::data_error);
  for (auto const& counts : {of_two, of_none, negative, of_two_ranks}) {
    CHECK_THROWS_AS(ranks.all_to_all_v<int>(three, counts, three, of_three), mo::data_error);
    CHECK_THROWS_AS(ranks.all_to_all_v<int>(three, of_three, three, counts), mo::data_error);
    CHECK_THROWS_AS(ranks.reduce_scatter_v(std::span(three), counts), mo::data_error);
    CHECK_THROWS_AS(ranks.reduce_scatter_fastest(std::span(three), counts), mo::data_error);
  }
  CHECK_FALSE(threads.world->failed());
}

TEST_CASE("counts are of 64 bits: what is 2^32 too many or beyond any memory is not taken for something else") {
  thread_ranks threads(2);
  mo::thread_communicator ranks(threads.group, 0);
  char one = 0;
  std::int64_t const large = (std::int64_t{1} << 40) + 1, larger = std::numeric_limits<std::int64_t>::max();
  std::span<char const> const out(&one, static_cast<std::size_t>(large));  // never read
  std::span<char> const in(&one, 0);
  std::vector<std::int64_t> const none{0, 0}, wrapped{1, large - (std::int64_t{1} << 32)}, beyond{larger, larger};
  for (auto const& counts : {wrapped, beyond})
    CHECK_THROWS_AS(ranks.all_to_all_v<char>(out, counts, in, none), mo::data_error);
  CHECK_FALSE(threads.world->failed());
}

TEST_CASE("sizes that no memory can hold are a mismatch, not an allocation") {
  for (std::int64_t const announced : {std::int64_t{-1}, std::int64_t{1} << 60, std::int64_t{1} << 62}) {
    auto const all = thread_ranks(3).run([&](ranks_of& ranks) {
      if (ranks.rank() != 1) {
        ranks.all_gather_v<std::int64_t>(std::vector<std::int64_t>(5));
      } else {  // what all_gather_v does first
        std::vector<std::int64_t> counts(3);
        ranks.all_gather<std::int64_t>(std::vector<std::int64_t>{announced}, counts);
        ranks.barrier();
      }
    });
    for (auto const& outcome : all) {
      auto const error = thrown<mo::comm_error>(outcome);
      REQUIRE(error);
      CHECK(error->fault == mo::comm_fault::mismatch);
    }
  }
}
