// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_board_exchange.hpp>

#include "mpi_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::detail::board_exchange;
using mo::detail::board_note;
using mo::detail::mpi_boards;
using mo::detail::mpi_header;
using mo::detail::mpi_progress;
using mpi_ranks::job;

namespace {

/// Until nothing more comes: at most 20 s.
template <class Poll> bool polled(Poll const& poll) {
  auto const end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < end) {
    if (poll() == mpi_progress::all) return true;
    std::this_thread::yield();
  }
  return false;
}

auto const right = [](board_exchange::incoming const& in) {
  CHECK(in.came.same_operation(in.wanted));
  CHECK(in.came.same_rows(in.wanted));
};
auto const nothing_else = [](board_exchange::incoming const&) { FAIL("rows were to come as messages"); };

struct waited {
  std::vector<int> silent, slow;
};
waited awaited(board_exchange const& of) {
  waited ranks;
  of.awaited(ranks.silent, ranks.slow);
  return ranks;
}
std::vector<int> ranks_of(int size) {
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

/// Row i of those that rank `from` sends to rank `to` in operation `number`.
std::byte value(int from, int to, std::int64_t number, std::int64_t i) {
  return static_cast<std::byte>((7 * from + 13 * to + 5 * number + 3 * i) % 251);
}

}  // namespace

TEST_CASE("rows of any place, few and many, from every rank to every rank") {
  job const in;
  mpi_boards boards(MPI_COMM_WORLD, in.all(), in.rank);
  // A note holds 928 bytes: 29 rows of 32; of one piece 1 MiB goes by a room.
  struct shape {
    std::int64_t rows, width;
    bool whole;
  };
  std::int64_t number = 0;
  for (auto const [rows, width, whole] : {shape{29, 32, false},
                                          {29, 33, false},
                                          {0, 8, false},
                                          {1, 928, true},
                                          {1, 929, true},
                                          {500, 3000, false},
                                          {1024, 1024, true},
                                          {7, 100, false},
                                          {900, 4096, false}}) {
    std::int64_t const stride = whole ? width : width + 3;
    auto const bytes = static_cast<std::size_t>(rows * stride + 1);
    std::vector<std::int32_t> forth(static_cast<std::size_t>(rows)), back(forth.size());
    for (std::int64_t i = 0; i < rows; ++i) {
      forth[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * 11 % rows);
      back[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(rows - 1 - i);
    }
    bool const turns = !whole && rows % 11 != 0;
    auto const of_all = bytes * static_cast<std::size_t>(in.size);
    std::vector<std::byte> from(of_all), to(of_all, std::byte{255});
    mo::rank_operation const what{.name = "rows", .width = width};
    mpi_header const header(what, rows, width, number, 0);
    std::vector<mo::outgoing_rows> all;
    board_exchange exchange(boards, number);
    for (int r = 0; r < in.size; ++r) {
      auto const first = bytes * static_cast<std::size_t>(r);
      for (std::int64_t i = 0; i < rows; ++i)
        std::fill_n(from.data() + first + i * stride, width, value(in.rank, r, number, i));
      all.push_back({from.data() + first, rows, width, stride, turns ? forth.data() : nullptr});
      exchange.expect(r, header, {to.data() + first, rows, width, stride, whole ? nullptr : back.data()}, 0);
    }
    CHECK(awaited(exchange).silent == ranks_of(in.size));
    exchange.make_room(all);
    for (int r = 0; r < in.size; ++r) CHECK(exchange.tell(r, header, all[static_cast<std::size_t>(r)]));
    CHECK(polled([&] { return exchange.poll(right, nothing_else); }));
    CHECK(awaited(exchange).silent.empty());
    CHECK(awaited(exchange).slow.empty());
    exchange.land();
    std::int64_t wrong = 0;
    for (int r = 0; r < in.size; ++r)
      for (std::int64_t i = 0; i < rows; ++i) {
        std::int64_t const place = whole ? i : rows - 1 - i, row = turns ? i * 11 % rows : i;
        for (std::int64_t b = 0; b < stride; ++b) {
          std::byte const wanted = b < width ? value(r, in.rank, number, row) : std::byte{255};
          wrong += to[bytes * static_cast<std::size_t>(r) + static_cast<std::size_t>(place * stride + b)] != wanted;
        }
      }
    CHECK(wrong == 0);
    ++number;
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST_CASE("a large piece of memory follows as messages, and what cannot be packed, too") {
  job const in;
  mpi_boards boards(MPI_COMM_WORLD, in.all(), in.rank);
  constexpr std::int64_t large = (1 << 20) + 1;
  std::vector<std::byte> from(2 * large), to(2 * large, std::byte{1});
  mo::rank_operation const what{.name = "large"};
  struct shape {
    std::int64_t rows, width, stride;
    bool makes_room;
  };
  std::int64_t number = 0;
  for (auto const [rows, width, stride, makes_room] :
       {shape{1, large, large, true}, {large, 1, 1, true}, {large, 1, 2, false}}) {
    board_exchange exchange(boards, number);
    mpi_header const header(what, rows, width, number, 0);
    exchange.expect(in.previous(), header, {to.data(), rows, width, stride, nullptr}, 77);
    mo::outgoing_rows const out{from.data(), rows, width, stride, nullptr};
    if (makes_room) exchange.make_room({&out, 1});
    CHECK(!exchange.tell(in.next(), header, out));
    int rest = 0;
    CHECK(polled([&] {
      return exchange.poll(right, [&](board_exchange::incoming const& it) {
        ++rest;
        CHECK(it.peer == in.previous());
        CHECK(it.tag == 77);
        CHECK(!it.packed);
      });
    }));
    CHECK(rest == 1);
    CHECK(awaited(exchange).slow.empty());
    exchange.land();
    ++number;
  }
  CHECK(std::count(to.begin(), to.end(), std::byte{1}) == 2 * large);
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST_CASE("rows whose note was refused stay where they are, and their sender waits") {
  job const in;
  mpi_boards boards(MPI_COMM_WORLD, in.all(), in.rank);
  constexpr std::int64_t rows = 100, width = 64;
  std::vector<std::byte> from(2 * rows * width, std::byte{3}), to(from.size());
  mo::rank_operation const what{.name = "refused"};
  board_exchange exchange(boards, 0);
  mpi_header const header(what, rows, width, 0, 0);
  exchange.expect(in.previous(), {what, rows - 1, width, 0, 0}, {to.data(), rows - 1, width, width, nullptr}, 0);
  std::vector<mo::outgoing_rows> all(static_cast<std::size_t>(in.size));
  mo::outgoing_rows const out{from.data(), rows, width, 2 * width, nullptr};
  all[static_cast<std::size_t>(in.next())] = out;
  exchange.make_room(all);
  CHECK(exchange.tell(in.next(), header, out));
  CHECK(awaited(exchange).slow == std::vector<int>{in.next()});
  auto const refuse = [](board_exchange::incoming const& it) {
    if (!it.came.same_rows(it.wanted)) throw 7;
  };
  CHECK_THROWS_AS(polled([&] { return exchange.poll(refuse, nothing_else); }), int);
  CHECK(awaited(exchange).slow == std::vector<int>{in.next()});
  CHECK(std::count(to.begin(), to.end(), std::byte{}) == std::ssize(to));
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST_CASE("packed rows that cannot be read are told of") {
  job const in;
  mpi_boards boards(MPI_COMM_WORLD, in.all(), in.rank);
  std::vector<std::byte> to(5000);
  mpi_header const header({.name = "lost"}, 5000, 1, 0, 0);
  board_exchange exchange(boards, 0);
  exchange.expect(in.previous(), header, {to.data(), 5000, 1, 1, nullptr}, 0);
  board_note& note = boards.note(in.next(), 0);
  note.header = header;
  note.place = {1, 1 << 20, 0};
  note.number.store(1);
  int told = 0;
  CHECK(polled(
      [&] { return exchange.poll(right, [&](board_exchange::incoming const& it) { told += it.packed ? 1 : 0; }); }));
  CHECK(told == 1);
  CHECK(!boards.taken(in.next(), 0));
  MPI_Barrier(MPI_COMM_WORLD);
}
