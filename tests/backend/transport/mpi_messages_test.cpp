// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_messages.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

namespace mo = moiety;
using namespace std::chrono_literals;
using mo::detail::mpi_flight;

namespace {

std::shared_ptr<mo::detail::mpi_group> group_of(std::int64_t piece, std::chrono::milliseconds deadline = 20s) {
  auto world = std::make_shared<mo::detail::mpi_world>(mo::run_options{.deadline = deadline}, piece);
  MPI_Comm const ranks = world->duplicate(world->control());
  return std::make_shared<mo::detail::mpi_group>(std::move(world), ranks, "world");
}

}  // namespace

TEST_CASE("rows of any place go round the ranks in pieces of any size, or along with their header") {
  struct sizes {
    std::int64_t piece, width;
  };
  // Along go 3072 bytes at most, and no more than a piece has: 37 rows of 83 bytes do, of 84 do not.
  for (auto const [piece, width] : {sizes{1, 5}, {3, 5}, {16, 5}, {1 << 20, 5}, {1 << 20, 83}, {1 << 20, 84}}) {
    auto const group = group_of(piece);
    int const next = (group->rank + 1) % group->size, previous = (group->rank + group->size - 1) % group->size;
    constexpr std::int64_t rows = 37;
    std::int64_t const stride = width + 4;
    std::vector<std::byte> from(static_cast<std::size_t>(rows * stride)), to(from.size(), std::byte{250}), wanted = to;
    std::mt19937 draw(11);
    for (auto& b : from) b = static_cast<std::byte>(draw() % 200);
    std::vector<std::int32_t> forth(rows), back(rows);
    for (std::int32_t i = 0; i < rows; ++i) {
      forth[static_cast<std::size_t>(i)] = (i * 5) % static_cast<std::int32_t>(rows);
      back[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(rows) - 1 - i;
    }
    mo::outgoing_rows const out{from.data(), rows, width, stride, forth.data()};
    mo::incoming_rows const in{to.data(), rows, width, stride, back.data()};
    mo::detail::copy_rows(out, {wanted.data(), rows, width, stride, back.data()});

    mo::rank_operation const what{.name = "round"};
    mpi_flight flight(group, what, 0);
    flight.expect(previous, {what, rows, width, 0, 0}, in, {5, 6});
    CHECK(flight.awaited() == std::vector<int>{previous});
    flight.send(next, {what, rows, width, 0, 0}, out, {5, 6});
    int headers = 0;
    bool differs = false;
    CHECK(group->world->wait([&] {
      return flight.poll([&](auto const& it) {
        ++headers;
        differs = differs || !it.came.same_operation(it.wanted) || !it.came.same_rows(it.wanted);
      });
    }));
    CHECK(flight.awaited().empty());
    CHECK(!flight.landed());
    flight.land();
    CHECK(flight.landed());
    CHECK(headers == 1);
    CHECK(!differs);
    CHECK(to == wanted);
  }
}

TEST_CASE("rows whose header was refused are not received") {
  for (std::int64_t const sent : {101, 3072, 3073, 300000}) {
    auto const group = group_of(1 << 20);
    std::vector<std::byte> from(300000, std::byte{1}), to(300000);
    mo::rank_operation const what{.name = "longer"};
    auto refuse = [](auto const& it) {
      if (!it.came.same_rows(it.wanted)) throw 7;
    };
    auto exchange = [&] {
      mpi_flight flight(group, what, 0);
      flight.expect(group->rank, {what, 100, 1, 0, 0}, {to.data(), 100, 1, 1, nullptr}, {5, 6});
      flight.send(group->rank, {what, sent, 1, 0, 0}, {from.data(), sent, 1, 1, nullptr}, {5, 6});
      return group->world->wait([&] { return flight.poll(refuse); });
    };
    CHECK_THROWS_AS(exchange(), int);
    CHECK(group->world->failed());
    CHECK(to == std::vector<std::byte>(300000));
  }
}

TEST_CASE("the memory of messages that have landed is that of the next ones") {
  auto const group = group_of(1 << 20);
  constexpr std::int64_t rows = 700, width = 10;
  std::vector<std::byte> from(2 * rows * width, std::byte{1}), to(from.size());
  auto const round = [&](std::int64_t of_rows) {
    mo::rank_operation const what{.name = "round"};
    mpi_flight flight(group, what, 0);
    flight.expect(group->rank, {what, of_rows, width, 0, 0}, {to.data(), of_rows, width, 2 * width, nullptr}, {5, 6});
    flight.send(group->rank, {what, of_rows, width, 0, 0}, {from.data(), of_rows, width, 2 * width, nullptr}, {5, 6});
    CHECK(group->world->wait([&] { return flight.poll([](auto const&) {}); }));
    flight.land();
  };
  auto const memory = [&] {
    auto parcels = group->spare.take();
    std::vector<std::byte const*> const all{parcels->in.next().first.data(), parcels->in.used()[0].together.data(),
                                            parcels->out.next().first.data(), parcels->out.used()[0].rows.data()};
    group->spare.give(std::move(parcels));
    return all;
  };
  round(rows);
  auto const first = memory();
  for (std::byte const* p : first) CHECK(p != nullptr);
  for (std::int64_t const of_rows : {rows, std::int64_t{3}, std::int64_t{0}, rows - 1}) {
    std::fill(to.begin(), to.end(), std::byte{});
    round(of_rows);
    CHECK(memory() == first);
    CHECK(std::count(to.begin(), to.end(), std::byte{1}) == of_rows * width);
  }
}

TEST_CASE("what is let go in flight is a failure, and its end is near") {
  auto const group = group_of(1 << 20);
  std::vector<std::byte> large(1 << 22);
  auto const begin = std::chrono::steady_clock::now();
  mo::rank_operation const what{.name = "lost"};
  int const next = (group->rank + 1) % group->size;
  {
    mpi_flight flight(group, what, 4);
    flight.expect(next, {what, 1 << 22, 1, 0, 0}, {large.data(), 1 << 22, 1, 1, nullptr}, {5, 6});
    flight.send(next, {what, 1 << 22, 1, 0, 0}, {large.data(), 1 << 22, 1, 1, nullptr}, {7, 8});
  }
  CHECK(std::chrono::steady_clock::now() - begin < 3s);
  CHECK(group->world->failed());
  CHECK_THROWS_AS(group->world->look(), mo::comm_error);
}
