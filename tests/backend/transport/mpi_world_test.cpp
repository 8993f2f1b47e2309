// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_world.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace mo = moiety;
using namespace std::chrono_literals;
using mo::detail::mpi_progress;
using mo::detail::mpi_world;

namespace {

/// A clock that stands until it is told to run.
std::chrono::steady_clock::duration tick{};
std::chrono::steady_clock::time_point own_time() {
  static std::chrono::steady_clock::time_point time;
  return time += tick;
}

mo::comm_error error_of(mpi_world& world) {
  try {
    for (auto const end = std::chrono::steady_clock::now() + 10s; std::chrono::steady_clock::now() < end;) world.look();
  } catch (mo::comm_error const& e) {
    return e;
  }
  return {mo::comm_fault::timeout, "nothing was heard", -1, -1, ""};
}

}  // namespace

TEST_CASE("options that cannot work") {
  CHECK_THROWS_AS(mpi_world({.deadline = 0ms}, 1 << 20), mo::config_error);
  for (std::int64_t const piece : {std::int64_t{0}, std::int64_t{-4}, (std::int64_t{1} << 30) + 1})
    CHECK_THROWS_AS(mpi_world({}, piece), mo::config_error);
}

TEST_CASE("waiting ends where all is there, or at the deadline without any progress") {
  mpi_world world({.deadline = 60s, .now = &own_time}, 1 << 20);
  tick = 10s;
  int turns = 0;
  CHECK(world.wait([&] { return ++turns < 5 ? mpi_progress::none : mpi_progress::all; }));
  CHECK(turns == 5);

  CHECK(!world.wait([] { return mpi_progress::none; }));

  // Each piece that comes makes the deadline begin again.
  turns = 0;
  CHECK(world.wait([&] {
    ++turns;
    return turns > 2000 ? mpi_progress::all : turns % 40 == 0 ? mpi_progress::some : mpi_progress::none;
  }));
  tick = {};
}

TEST_CASE("a failure is told to every rank, and only the first counts") {
  mpi_world world({}, 1 << 20);
  CHECK_NOTHROW(world.look());
  MPI_Barrier(MPI_COMM_WORLD);  // before one fails
  int const last = world.size() - 1;
  std::string const long_text(1000, 'x');
  if (world.rank() == last) {
    world.fail({mo::comm_fault::aborted, "all_reduce", last, 12, "the reason is " + long_text});
    world.fail({mo::comm_fault::timeout, "barrier", 0, 13, "later"});
  }
  mo::comm_error const error = error_of(world);
  CHECK(error.fault == (world.rank() == last ? mo::comm_fault::aborted : mo::comm_fault::remote));
  CHECK(error.operation == "all_reduce");
  CHECK(error.rank == last);
  CHECK(error.step == 12);
  CHECK(std::string(error.what()).starts_with("the reason is xxxx"));
  CHECK(world.failed());
  CHECK_THROWS_AS(world.look(), mo::comm_error);
}

TEST_CASE("faults of one rank that another has found are the same for all") {
  mpi_world world({}, 1 << 20);
  if (world.rank() == 0) world.fail({mo::comm_fault::mismatch, "all_gather", world.size() - 1, 3, "they differ."});
  mo::comm_error const error = error_of(world);
  CHECK(error.fault == mo::comm_fault::mismatch);
  CHECK(error.rank == world.size() - 1);
}

TEST_CASE("an exception that takes down the last holder of a run is a failure of its rank") {
  auto const begin = std::chrono::steady_clock::now();
  try {
    mpi_world world({}, 1 << 20);
    if (world.rank() == 0) throw 5;
    mo::comm_error const error = error_of(world);
    CHECK(error.fault == mo::comm_fault::remote);
    CHECK(error.rank == 0);
  } catch (int thrown) {
    CHECK(thrown == 5);
  }
  CHECK(std::chrono::steady_clock::now() - begin < 5s);
}

TEST_CASE("groups know their ranks of the run") {
  auto world = std::make_shared<mpi_world>(mo::run_options{}, 1 << 20);
  MPI_Comm reversed = MPI_COMM_NULL;
  MPI_Comm_split(world->control(), 0, world->size() - world->rank(), &reversed);
  mo::detail::mpi_group const group(world, reversed, "reversed");
  REQUIRE(group.size == world->size());
  CHECK(group.rank == world->size() - 1 - world->rank());
  for (int r = 0; r < group.size; ++r) CHECK(group.world_rank(r) == world->size() - 1 - r);
}
