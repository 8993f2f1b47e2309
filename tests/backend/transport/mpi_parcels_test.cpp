// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_parcels.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <utility>

namespace mo = moiety;
using mo::detail::mpi_header;

TEST_CASE("headers say what differs") {
  mpi_header const a({.name = "all_gather", .width = 4, .count = 10}, 10, 4, 3, 1);
  CHECK(a.same_operation({{.name = "all_gather", .width = 4, .count = 10}, 7, 4, 3, 9}));
  CHECK(!a.same_operation({{.name = "all_reduce", .width = 4, .count = 10}, 10, 4, 3, 1}));
  CHECK(!a.same_operation({{.name = "all_gather", .width = 8, .count = 10}, 10, 4, 3, 1}));
  CHECK(!a.same_operation({{.name = "all_gather", .width = 4, .count = 10, .root = 0}, 10, 4, 3, 1}));
  CHECK(!a.same_operation({{.name = "all_gather", .width = 4, .count = 10}, 10, 4, 4, 1}));
  CHECK(a.same_rows({{.name = "other"}, 10, 4, 0, 0}));
  CHECK(!a.same_rows({{.name = "all_gather"}, 10, 8, 3, 1}));
  CHECK(!a.same_rows({{.name = "all_gather"}, 11, 4, 3, 1}));
  // The width of no rows is nobody's concern.
  CHECK(mpi_header({}, 0, 4, 0, 0).same_rows({{}, 0, 8, 0, 0}));
}

TEST_CASE("a header is of the rows that it is told") {
  mpi_header const a({.name = "dispatch", .width = 12}, 4, 12, 3, 1);
  mo::outgoing_rows const rows{nullptr, 9, 16, 32, nullptr}, none{nullptr, 0, 16, 32, nullptr};
  CHECK(a.of(rows).rows == 9);
  CHECK(a.of(rows).row_width == 16);
  CHECK(a.of(rows).same_operation(a));
  CHECK(a.of(none).same_rows({{}, 0, 8, 0, 0}));
}

TEST_CASE("long names end where they must") {
  std::string const name(100, 'x');
  mpi_header const a({.name = name.c_str()}, 0, 0, 0, 0);
  CHECK(std::string(a.what().name) == std::string(sizeof a.name - 1, 'x'));
}

TEST_CASE("a room stays where it is until more is asked for") {
  mo::detail::mpi_room room;
  CHECK(room.of(0) == room.data());
  std::byte* const at = room.of(100);
  REQUIRE(at != nullptr);
  at[99] = std::byte{7};
  CHECK(room.of(1) == at);
  CHECK(room.of(100) == at);
  CHECK(room.data()[99] == std::byte{7});
  room.of(1 << 20)[(1 << 20) - 1] = std::byte{8};
  CHECK(room.of(100) == room.data());
}

TEST_CASE("what is used again keeps its memory") {
  mo::detail::mpi_spare spare;
  auto one = spare.take(), other = spare.take();
  CHECK(one.get() != other.get());
  auto* const of_one = one.get();
  std::byte const* const there = one->in.next().together.of(500);
  std::byte const* const second = one->in.next().together.of(600);
  CHECK(one->in.used().size() == 2);
  one->add(MPI_REQUEST_NULL, {1, 0, true});
  spare.give(std::move(other));
  spare.give(std::move(one));
  auto again = spare.take();
  CHECK(again.get() == of_one);
  CHECK(again->in.used().empty());
  CHECK(again->requests.empty());
  CHECK(again->notes.empty());
  CHECK(again->open == 0);
  CHECK(again->in.next().together.of(500) == there);
  CHECK(again->in.next().together.data() == second);
}
