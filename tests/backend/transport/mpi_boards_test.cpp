// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_boards.hpp>

#include "mpi_ranks.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::detail::board_note;
using mo::detail::board_page;
using mo::detail::mpi_boards;
using mpi_ranks::job;

TEST_CASE("boards reach those who are near, and who read them") {
  job const in;
  mpi_boards const boards(MPI_COMM_WORLD, in.all(), in.rank), none(MPI_COMM_WORLD, in.all(false), in.rank);
  auto halves = in.all();
  for (int r = 0; r < in.size; ++r) halves[static_cast<std::size_t>(r)] = r % 2 == in.rank % 2;
  mpi_boards const some(MPI_COMM_WORLD, halves, in.rank);
  for (int r = 0; r < in.size; ++r) {
    CHECK(boards.reaches(r));
    CHECK(!none.reaches(r));
    CHECK(some.reaches(r) == halves[static_cast<std::size_t>(r)]);
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST_CASE("who has no board is reached by nobody, and the others reach each other") {
  job const in;
  std::optional<mpi_ranks::no_file_grows> limit;
  if (in.rank == 0) limit.emplace();
  mpi_boards const boards(MPI_COMM_WORLD, in.all(), in.rank);
  limit.reset();
  for (int r = 0; r < in.size; ++r) CHECK(boards.reaches(r) == (r != 0 && in.rank != 0));
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST_CASE("a group in which one rank has no board exchanges rows with it as messages") {
  job const in;
  auto ranks = mpi_ranks::world_of();
  std::optional<mpi_ranks::no_file_grows> limit;
  if (in.rank == 0) limit.emplace();
  auto part = ranks.split(0, in.rank, "part");
  limit.reset();
  for (std::int64_t const n : {1, 100, 5000, 400000}) {
    auto const block = static_cast<std::size_t>(n);
    std::vector<float> all(block * static_cast<std::size_t>(in.size)), wanted;
    for (int r = 0; r < in.size; ++r) {
      auto const theirs = mpi_ranks::values_of<float>(r, n);
      wanted.insert(wanted.end(), theirs.begin(), theirs.end());
    }
    part.all_gather<float>(mpi_ranks::values_of<float>(in.rank, n), all);
    CHECK(all == wanted);
  }
}

TEST_CASE("a note is that of its operation, before and after others") {
  job const in;
  mpi_boards boards(MPI_COMM_WORLD, in.all(), in.rank);
  for (std::int64_t number = 0; number < 3 * board_page::operations; ++number) {
    CAPTURE(number);
    CHECK(boards.came(in.previous(), number + board_page::operations) == nullptr);
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(boards.came(in.previous(), number) == nullptr);
    CHECK(!boards.taken(in.next(), number));
    MPI_Barrier(MPI_COMM_WORLD);
    board_note& note = boards.note(in.next(), number);
    note.header.rows = 1000 * in.rank + number;
    note.number.store(number + 1);
    boards.take(in.previous(), number);
    MPI_Barrier(MPI_COMM_WORLD);
    board_note const* const came = boards.came(in.previous(), number);
    REQUIRE(came != nullptr);
    CHECK(came->header.rows == 1000 * in.previous() + number);
    CHECK(boards.taken(in.next(), number));
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

TEST_CASE("a room that has been used is the next one") {
  job const in;
  mpi_boards boards(MPI_COMM_WORLD, in.all(), in.rank);
  auto first = boards.take_room(), second = boards.take_room();
  auto* const of_second = second.get();
  CHECK(first.get() != of_second);
  boards.give_room(std::move(first));
  boards.give_room(std::move(second));
  CHECK(boards.take_room().get() == of_second);
  MPI_Barrier(MPI_COMM_WORLD);
}
