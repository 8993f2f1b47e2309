// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_rooms.hpp>
#include <moiety/backend/transport/mpi_session.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

namespace mo = moiety;
using mo::detail::room_place;
using mo::detail::rooms_of_others;
using mo::detail::shared_room;

TEST_CASE("a room stays where it is until more is asked for, and is read where it lies") {
  shared_room room;
  CHECK(room.of(0) == nullptr);
  std::byte* const at = room.of(100);
  REQUIRE(at != nullptr);
  std::fill_n(at, 100, std::byte{7});
  CHECK(room.of(1) == at);
  CHECK(room.of(100) == at);

  rooms_of_others rooms;
  room_place const place = room.place(at + 60);
  CHECK(place.process == ::getpid());
  CHECK(place.at == 60);
  std::byte const* const there = rooms.read(place, 40);
  REQUIRE(there != nullptr);
  CHECK(there != at + 60);
  CHECK(std::all_of(there, there + 40, [](std::byte b) { return b == std::byte{7}; }));
  at[61] = std::byte{8};
  CHECK(there[1] == std::byte{8});
  CHECK(rooms.read(place, 40) == there);

  // What has grown is mapped again.
  std::byte* const larger = room.of(3 << 20);
  REQUIRE(larger != nullptr);
  larger[(3 << 20) - 1] = std::byte{9};
  std::byte const* const end = rooms.read(room.place(larger + (3 << 20) - 1), 1);
  REQUIRE(end != nullptr);
  CHECK(*end == std::byte{9});
}

TEST_CASE("what others do not share, or not so far, cannot be read") {
  shared_room room;
  std::byte* const at = room.of(100);
  REQUIRE(at != nullptr);
  room_place const place = room.place(at);
  rooms_of_others rooms;
  constexpr std::int64_t far = std::numeric_limits<std::int64_t>::max();
  CHECK(rooms.read(place, 1) != nullptr);
  CHECK(rooms.read(place, std::int64_t{1} << 30) == nullptr);
  CHECK(rooms.read({place.process, place.file, std::int64_t{1} << 40}, 1) == nullptr);
  CHECK(rooms.read({place.process, place.file, far}, far) == nullptr);
  CHECK(rooms.read({place.process, place.file, -1}, 1) == nullptr);
  CHECK(rooms.read({place.process, place.file, -far - 1}, 1) == nullptr);
  CHECK(rooms.read({place.process, 1 << 20, 0}, 1) == nullptr);
  CHECK(rooms.read({0, place.file, 0}, 1) == nullptr);
  CHECK(rooms.read({}, 1) == nullptr);
  CHECK(rooms.read(place, 1) != nullptr);
}

TEST_CASE("where the system gives no file there is no room, until it does") {
  rlimit usual{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &usual) == 0);
  rlimit const none{0, usual.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  shared_room room;
  std::byte const* const refused = room.of(1000);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &usual) == 0);
  CHECK(refused == nullptr);
  CHECK(room.place(refused).file < 0);
  std::byte* const at = room.of(1000);
  REQUIRE(at != nullptr);
  std::fill_n(at, 1000, std::byte{1});
}

TEST_CASE("processes read each other") {
  mo::detail::mpi_session::get();
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  shared_room room;
  std::byte* const at = room.of(1000);
  REQUIRE(at != nullptr);
  std::fill_n(at, 1000, static_cast<std::byte>(10 + rank));
  room_place const mine = room.place(at + 500);
  std::vector<room_place> all(static_cast<std::size_t>(size));
  MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, MPI_COMM_WORLD);
  rooms_of_others rooms;
  for (int r = 0; r < size; ++r) {
    std::byte const* const there = rooms.read(all[static_cast<std::size_t>(r)], 500);
    REQUIRE(there != nullptr);
    CHECK(std::count(there, there + 500, static_cast<std::byte>(10 + r)) == 500);
  }
  MPI_Barrier(MPI_COMM_WORLD);
}
