// SPDX-License-Identifier: Apache-2.0
// What the tests of the transport mpi share: a run of all processes, what ranks have, and how calls end.
#pragma once

#include <moiety/backend/transport/mpi.hpp>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <sys/resource.h>

namespace mpi_ranks {

/// Pieces of messages and sums are as long as usual, and ranks have boards, if nothing is said.
inline moiety::mpi_communicator world_of(std::chrono::milliseconds deadline = std::chrono::seconds(60),
                                         std::int64_t piece = std::int64_t{1} << 26, bool boards = true) {
  moiety::detail::mpi_session::get();
  MPI_Barrier(MPI_COMM_WORLD);  // who failed in the case before may still be there, and the deadline of a run is short
  return moiety::mpi_communicator::world({.deadline = deadline}, piece, boards);
}

/// The processes of the job, which begin a case together.
struct job {
  int rank = 0, size = 0;

  job() {
    moiety::detail::mpi_session::get();
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Barrier(MPI_COMM_WORLD);
  }
  int next() const { return (rank + 1) % size; }
  int previous() const { return (rank + size - 1) % size; }
  std::vector<bool> all(bool near = true) const { return std::vector<bool>(static_cast<std::size_t>(size), near); }
};

/// While it lives, the system gives this process no byte of a file: neither of one in memory.
class no_file_grows {
 public:
  no_file_grows() : handled_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &usual_);
    rlimit const none{0, usual_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &none);
  }
  no_file_grows(no_file_grows const&) = delete;
  no_file_grows& operator=(no_file_grows const&) = delete;
  ~no_file_grows() {
    ::setrlimit(RLIMIT_FSIZE, &usual_);
    std::signal(SIGXFSZ, handled_);
  }

 private:
  rlimit usual_{};
  void (*handled_)(int);
};

/// What rank r has in a test, known to every rank.
template <class T> std::vector<T> values_of(int r, std::int64_t n, unsigned salt = 0) {
  std::mt19937 draw(1000 * salt + static_cast<unsigned>(r) + 1);
  std::vector<T> values(static_cast<std::size_t>(n));
  for (T& v : values) v = static_cast<T>(std::uniform_real_distribution<double>(-100, 100)(draw));
  return values;
}

/// The error that body ends in, and how long that took.
struct ending {
  moiety::comm_error error{moiety::comm_fault::aborted, "no error", -1, -1, ""};
  std::chrono::steady_clock::duration took{};
};
template <class Body> ending ending_of(Body const& body) {
  auto const begin = std::chrono::steady_clock::now();
  ending result;
  try {
    body();
  } catch (moiety::comm_error const& e) {
    result.error = e;
  }
  result.took = std::chrono::steady_clock::now() - begin;
  return result;
}

}  // namespace mpi_ranks
