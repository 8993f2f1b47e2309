// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/device_ranks.cuh>

#include "backend/transport/thread_ranks.hpp"
#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace {

using ranks_of_threads = mo::device_ranks<mo::thread_communicator>;
static_assert(mo::communicator<ranks_of_threads>);

/// Memory of an engine, which is in the order of its stream, with these values.
template <class V> mo::buffer placed(mo::cuda_engine& engine, std::vector<V> const& values) {
  mo::buffer block(static_cast<std::int64_t>(values.size() * sizeof(V)), engine.memory());
  engine.memory().store(block.data(), values.data(), block.bytes());
  return block;
}
template <class V> std::vector<V> taken(mo::cuda_engine& engine, mo::buffer const& block) {
  std::vector<V> values(static_cast<std::size_t>(block.bytes()) / sizeof(V));
  engine.memory().load(values.data(), block.data(), block.bytes());
  return values;
}

constexpr std::int64_t columns = 5;
std::int32_t mark(int rank, std::int64_t row, std::int64_t column) {
  return static_cast<std::int32_t>(10000 * rank + 100 * row + column);
}

/// Rank r has 3 + r rows, of which it sends those of odd number to everyone; they come to every second place.
void exchange_odd_rows(mo::cuda_engine& engine, ranks_of_threads& ranks) {
  int const me = ranks.rank(), size = ranks.size();
  auto const count = [](int r) { return std::int64_t{3 + r}; };
  std::vector<std::int32_t> values, odd, every_second;
  for (std::int64_t row = 0; row < count(me); ++row)
    for (std::int64_t c = 0; c < columns; ++c) values.push_back(mark(me, row, c));
  std::int64_t all = 0;
  for (int r = 0; r < size; ++r) all += count(r) / 2;
  for (std::int32_t row = 1; row < count(me); row += 2) odd.push_back(row);
  for (std::int32_t row = 0; row < all; ++row) every_second.push_back(2 * row);
  mo::buffer const own = placed(engine, values), odd_rows = placed(engine, odd), places = placed(engine, every_second);
  mo::buffer const room(2 * all * columns * 4, engine.memory());
  engine.memory().zero(room.data(), room.bytes());
  std::vector<mo::outgoing_rows> const to(static_cast<std::size_t>(size),
                                          {static_cast<std::byte const*>(own.data()), count(me) / 2, columns * 4,
                                           columns * 4, static_cast<std::int32_t const*>(odd_rows.data())});
  std::vector<mo::incoming_rows> from;
  std::int64_t first = 0;
  for (int r = 0; r < size; first += count(r++) / 2)
    from.push_back({static_cast<std::byte*>(room.data()), count(r) / 2, columns * 4, columns * 4,
                    static_cast<std::int32_t const*>(places.data()) + first});
  ranks.finish(ranks.start({.name = "odd rows", .width = columns * 4}, to, from));
  engine.memory().zero(own.data(), own.bytes());  // what was sent is free when all have it
  engine.settle();
  ranks.barrier();
  std::vector<std::int32_t> wanted(static_cast<std::size_t>(2 * all * columns));
  auto at = wanted.begin();
  for (int r = 0; r < size; ++r)
    for (std::int64_t row = 1; row < count(r); row += 2, at += 2 * columns)
      for (std::int64_t c = 0; c < columns; ++c) at[c] = mark(r, row, c);
  expect(taken<std::int32_t>(engine, room) == wanted, "rows of all ranks");
}

}  // namespace

TEST_CASE("rows of device memory go between ranks that are threads, from and to any place") {
  for (int const size : {1, 2, 4})
    on_ranks(size, [](mo::thread_communicator& of) {
      mo::cuda_engine engine{mo::cuda{}};
      ranks_of_threads ranks(engine, of);
      for (int i = 0; i < 3; ++i) exchange_odd_rows(engine, ranks);
    });
}

TEST_CASE("values, sums and messages beside them are of host memory") {
  on_ranks(3, [](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    ranks_of_threads ranks(engine, of);
    std::vector<double> values(3000, ranks.rank() + 1.0);
    ranks.all_reduce(std::span<double>(values));
    expect(values == std::vector<double>(3000, 6.0), "a sum");
    std::int64_t const mine = ranks.rank();
    expect(ranks.all_gather_v<std::int64_t>({&mine, 1}) == std::vector<std::int64_t>{0, 1, 2}, "a gather");
  });
}

TEST_CASE("parts of a group exchange rows too") {
  on_ranks(4, [](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    ranks_of_threads ranks(engine, of);
    ranks_of_threads part = ranks.split(ranks.rank() % 2, ranks.rank(), "half");
    expect(part.size() == 2);
    exchange_odd_rows(engine, part);
  });
}

TEST_CASE("kernels for the rows of ranks are called with their engine") {
  on_ranks(1, [](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    ranks_of_threads ranks(engine, of);
    std::vector<float> ones(70, 1.0f), halves(70, 0.5f);
    mo::buffer const to = placed(engine, ones), from = placed(engine, halves);
    mo::detail::call_kernel(ranks, [&](auto&... by) {
      static_assert(sizeof...(by) == 1);
      mo::detail::add_values(by..., static_cast<float const*>(from.data()), 70, static_cast<float*>(to.data()));
    });
    expect(taken<float>(engine, to) == std::vector<float>(70, 1.5f));
  });
}

TEST_CASE(
    "rows of other sizes than a rank expects are a mismatch on all ranks, and a rank that throws ends the others") {
  auto const rows = [](mo::buffer const& block, std::int64_t count) {
    return std::vector<mo::outgoing_rows>(2, {static_cast<std::byte const*>(block.data()), count, 4, 4, nullptr});
  };
  auto const sizes = thread_ranks(2).run([&](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    ranks_of_threads ranks(engine, of);
    mo::buffer const out = placed(engine, std::vector<float>(4)), in = placed(engine, std::vector<float>(8));
    std::vector<mo::incoming_rows> const from(2, {static_cast<std::byte*>(in.data()), 3, 4, 4, nullptr});
    ranks.finish(ranks.start({.name = "rows", .width = 4}, rows(out, of.rank() == 0 ? 2 : 3), from));
  });
  for (auto const& outcome : sizes) CHECK(thrown<mo::comm_error>(outcome).value().fault == mo::comm_fault::mismatch);
  auto const leaves = thread_ranks(2).run([&](mo::thread_communicator& of) {
    mo::cuda_engine engine{mo::cuda{}};
    ranks_of_threads ranks(engine, of);
    if (of.rank() == 1) throw mo::data_error("no more.");
    mo::buffer const block = placed(engine, std::vector<float>(4));
    std::vector<mo::incoming_rows> const from(2, {static_cast<std::byte*>(block.data()), 2, 4, 4, nullptr});
    ranks.finish(ranks.start({.name = "rows", .width = 4}, rows(block, 2), from));
  });
  CHECK(thrown<mo::data_error>(leaves[1]).has_value());
  CHECK(thrown<mo::comm_error>(leaves[0]).has_value());
}
