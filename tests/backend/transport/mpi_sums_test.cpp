// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/mpi_sums.hpp>

#include <moiety/backend/transport/mpi.hpp>

#include "backend/transport/mpi_ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace mo = moiety;
using namespace std::chrono_literals;
using ranks = mo::mpi_communicator;
using mpi_ranks::ending;
using mpi_ranks::ending_of;
using mpi_ranks::values_of;

namespace {

/// What has been asked of MPI, and how it is to answer.
struct {
  int calls = 0;
  std::int64_t values = 0;
  int code = MPI_SUCCESS;
  std::chrono::milliseconds late{0};
} asked;

int answered(std::int64_t values) {
  ++asked.calls;
  asked.values += values;
  std::this_thread::sleep_for(asked.late);
  return asked.code;
}

ranks world_of(std::chrono::milliseconds deadline = 60s, std::int64_t piece = std::int64_t{1} << 26) {
  asked = {};
  return mpi_ranks::world_of(deadline, piece);
}

/// The sum of every rank's values, and of their magnitudes.
template <class T> struct sums {
  std::vector<double> values, magnitudes;

  sums(int size, std::int64_t n) : values(static_cast<std::size_t>(n)), magnitudes(values) {
    for (int r = 0; r < size; ++r) {
      auto const more = values_of<T>(r, n);
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] += static_cast<double>(more[i]), magnitudes[i] += std::abs(static_cast<double>(more[i]));
    }
  }
  /// Whether these are the values from `first` on, added in any order: exact for whole numbers.
  bool hold(std::span<T const> of, std::int64_t first, int size) const {
    for (std::size_t i = 0; i < of.size(); ++i) {
      std::size_t const at = i + static_cast<std::size_t>(first);
      double const epsilon = std::is_floating_point_v<T> ? static_cast<double>(std::numeric_limits<T>::epsilon()) : 0;
      if (std::abs(static_cast<double>(of[i]) - values[at]) > size * epsilon * magnitudes[at]) return false;
    }
    return true;
  }
};

/// Parts of other sizes for each rank; that of the second is empty.
std::vector<std::int64_t> parts_of(std::int64_t n, int size) {
  std::vector<std::int64_t> counts;
  for (int r = 0; r + 1 < size; n -= counts.back(), ++r) counts.push_back(r == 1 ? 0 : n / (3 + r));
  counts.push_back(n);
  return counts;
}

}  // namespace

// These come before those of MPI.
int MPI_Iallreduce(void const* from, void* to, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                   MPI_Request* request) {
  int const code = answered(count);
  return code == MPI_SUCCESS ? PMPI_Iallreduce(from, to, count, type, op, comm, request) : code;
}
int MPI_Ireduce_scatter(void const* from, void* to, int const counts[], MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                        MPI_Request* request) {
  int size = 0;
  MPI_Comm_size(comm, &size);
  int const code = answered(std::accumulate(counts, counts + size, std::int64_t{0}));
  return code == MPI_SUCCESS ? PMPI_Ireduce_scatter(from, to, counts, type, op, comm, request) : code;
}

TEST_CASE_TEMPLATE("the fastest sums are sums, the same on every rank, of any number of pieces", T, float, double,
                   std::int64_t) {
  for (std::int64_t const piece : {std::int64_t{1} << 26, std::int64_t{1021}, std::int64_t{1} << 14}) {
    ranks w = world_of(60s, piece);
    for (std::int64_t const n : {0, 1, 501, 5003}) {  // the last are beyond one round of messages in every type
      CAPTURE(piece);
      CAPTURE(n);
      sums<T> const wanted(w.size(), n);
      auto values = values_of<T>(w.rank(), n);
      w.all_reduce_fastest<T>(values);
      CHECK(wanted.hold(values, 0, w.size()));
      auto of_root = values;
      w.broadcast<T>(of_root, 0);
      CHECK(of_root == values);

      auto const mine = values_of<T>(w.rank(), n);
      for (auto const& counts : {mo::slice_counts(n, w.size()), parts_of(n, w.size())}) {
        auto scattered = mine;
        w.reduce_scatter_fastest<T>(scattered, counts);
        auto const part = counts.begin() + w.rank();
        std::int64_t const first = std::accumulate(counts.begin(), part, std::int64_t{0});
        CHECK(wanted.hold(
            std::span<T const>(scattered).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(*part)),
            first, w.size()));
        std::copy_n(mine.begin() + first, *part, scattered.begin() + first);
        CHECK(scattered == mine);  // other parts are as they were
      }
    }
    w.barrier();
  }
}

TEST_CASE("MPI sums what is more than one round of messages carries, in pieces of the longest message") {
  ranks w = world_of(60s, 8000);
  if (w.size() == 1) return;
  std::vector<double> values(2048, 1);
  w.all_reduce_fastest<double>(values);
  w.reduce_scatter_fastest<double>(values, mo::slice_counts(2048, w.size()));
  CHECK(asked.calls == 0);
  values.assign(2049, 1);
  w.all_reduce_fastest<double>(values);
  CHECK(asked.calls == 3);
  CHECK(asked.values == 2049);
  w.reduce_scatter_fastest<double>(values, mo::slice_counts(2049, w.size()));
  CHECK(asked.calls == 6);
  CHECK(asked.values == 2 * 2049);
}

TEST_CASE("what MPI refuses ends the run, with its words") {
  ranks w = world_of(20s);
  if (w.size() == 1) return;
  std::vector<float> values(9000, 1);
  if (w.rank() == 0) asked.code = MPI_ERR_OP;
  ending const end = ending_of([&] {
    w.all_reduce_fastest<float>(values);
    w.barrier();
  });
  CHECK(end.error.fault == (w.rank() == 0 ? mo::comm_fault::aborted : mo::comm_fault::remote));
  CHECK(end.error.rank == 0);
  CHECK(std::string(end.error.what()).find("MPI says " + mo::detail::mpi_text(MPI_ERR_OP)) != std::string::npos);
  CHECK(end.took < 10s);
}

TEST_CASE("a sum that does not come to its end has the deadline, and what MPI still reads stays") {
  ranks w = world_of(1s);
  if (w.size() == 1) return;
  if (w.rank() == w.size() - 1) asked.late = 4s;
  ending const end = ending_of([&] {
    std::vector<float> values(9000, 1);
    w.all_reduce_fastest<float>(values);
    w.barrier();
  });
  CHECK(end.error.fault == mo::comm_fault::timeout);
  CHECK(end.error.rank == -1);
  CHECK(std::string(end.error.what()).find("the sum was not there within 1000 ms") != std::string::npos);
  CHECK(end.took < 10s);
}

TEST_CASE("groups sum for themselves, and one rank alone has its own") {
  ranks w = world_of();
  ranks part = w.split(w.rank() % 2, w.rank(), "parity"), alone = w.split(w.rank(), 0, "alone");
  std::vector<std::int64_t> ranks_here(5000, w.rank());
  part.all_reduce_fastest<std::int64_t>(ranks_here);
  std::int64_t sum = 0;
  for (int r = w.rank() % 2; r < w.size(); r += 2) sum += r;
  CHECK(ranks_here == std::vector<std::int64_t>(5000, sum));
  std::vector<float> const own = values_of<float>(3, 9000);
  auto values = own;
  alone.all_reduce_fastest<float>(values);
  alone.reduce_scatter_fastest<float>(values, std::vector<std::int64_t>{9000});
  CHECK(values == own);
  CHECK_THROWS_AS(alone.reduce_scatter_fastest<float>(values, std::vector<std::int64_t>{8999}), mo::data_error);
}

TEST_CASE("ranks that sum other things hear of it, all of them, before a value has changed") {
  for (int which = 0; which < 4; ++which) {
    CAPTURE(which);
    ranks w = world_of(20s);
    if (w.size() == 1) return;
    bool const odd = w.rank() == w.size() - 1;
    auto const before = values_of<double>(w.rank(), 6000);
    auto values = before;
    std::span<double> const all(values), fewer = all.first(5990);
    auto counts = mo::slice_counts(6000, w.size()), moved = counts;
    ++moved.front(), --moved.back();
    ending const end = ending_of([&] {
      switch (which) {
        case 0: w.all_reduce_fastest(odd ? fewer : all); break;
        case 1: odd ? w.barrier() : w.all_reduce_fastest(all); break;
        case 2: odd ? w.all_reduce(all) : w.all_reduce_fastest(all); break;
        default: w.reduce_scatter_fastest(all, odd ? moved : counts);
      }
      w.barrier();
    });
    CHECK(end.error.fault == mo::comm_fault::mismatch);
    CHECK(end.took < 15s);
    CHECK(values == before);
  }
}

TEST_CASE("a rank that does not come to a sum is named at the deadline") {
  ranks w = world_of(1s);
  if (w.size() == 1) return;
  int const last = w.size() - 1;
  w.at_step(7);
  std::vector<float> values(9000, 1);
  ending const end = ending_of([&] {
    if (w.rank() == last) std::this_thread::sleep_for(4s);
    w.all_reduce_fastest<float>(values);
    w.barrier();
  });
  CHECK(end.error.fault == mo::comm_fault::timeout);
  CHECK(end.error.operation == "all_reduce_fastest");
  CHECK(end.error.rank == last);
  CHECK(end.error.step == 7);
  CHECK(end.took < 10s);
  CHECK_THROWS_AS(w.all_reduce_fastest<float>(values), mo::comm_error);
}

TEST_CASE("runs after a failed one sum again") {
  ranks w = world_of();
  std::vector<std::int64_t> ones(5000, 1);
  w.all_reduce_fastest<std::int64_t>(ones);
  CHECK(ones == std::vector<std::int64_t>(5000, w.size()));
}
