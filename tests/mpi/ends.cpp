// SPDX-License-Identifier: Apache-2.0
// Jobs that end in other ways than all tests passed: ends.py says how each must. Exit 0 says that this rank saw what it should.
#include <moiety/mpi.hpp>

#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>

namespace mo = moiety;
using namespace std::chrono_literals;

namespace {

int rank_of_job() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

/// The last rank never comes, and the others do not wait for it: not in the run, and not at its end.
int stuck() {
  auto ranks = mo::mpi_communicator::world({.deadline = 300ms});
  if (ranks.rank() == ranks.size() - 1) std::this_thread::sleep_for(1h);
  try {
    ranks.barrier();
  } catch (mo::comm_error const& e) {
    std::cout << "rank " << ranks.rank() << ": " << e.what() << std::endl;
    return 0;
  }
  return 1;
}

/// A rank dies without a word.
int dies() {
  auto ranks = mo::mpi_communicator::world({.deadline = 5s});
  ranks.barrier();
  if (ranks.rank() == ranks.size() - 1) std::_Exit(7);
  try {
    ranks.barrier();
    std::cout << "wrong: a barrier met without the rank that died" << std::endl;
  } catch (mo::comm_error const& e) {
    std::cout << "rank " << ranks.rank() << ": " << e.what() << std::endl;
  }
  return 1;
}

/// The program has initialised MPI at a level that is too low, and says so.
int low_level() {
  MPI_Init(nullptr, nullptr);
  int provided = 0, result = 1;
  MPI_Query_thread(&provided);
  if (provided >= MPI_THREAD_SERIALIZED) result = 0;
  try {
    mo::mpi_communicator::world();
  } catch (mo::config_error const& e) {
    std::cout << "rank " << rank_of_job() << ": " << e.what() << std::endl;
    result = provided < MPI_THREAD_SERIALIZED ? 0 : 1;
  }
  MPI_Finalize();
  return result;
}

/// The program initialises and finalises MPI itself, while a communicator is still there.
int own_session() {
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
  auto ranks = mo::mpi_communicator::world();
  auto part = ranks.split(ranks.rank() % 2, 0, "half");
  part.barrier();
  ranks.barrier();
  MPI_Finalize();
  try {
    mo::mpi_communicator::world();
  } catch (mo::config_error const&) {
    return 0;
  }
  return 1;
}

}  // namespace

int main(int, char** argv) {
  std::string_view const way = argv[1];
  std::cout << "this is " << way << std::endl;
  if (way == "stuck") return stuck();
  if (way == "dies") return dies();
  if (way == "low_level") return low_level();
  if (way == "own_session") return own_session();
  std::cerr << "no such way: " << way << '\n';
  return 2;
}
