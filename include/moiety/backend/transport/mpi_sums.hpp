// SPDX-License-Identifier: Apache-2.0
// Sums over ranks that are processes in the order that MPI chooses, MPI_Iallreduce and MPI_Ireduce_scatter: of float, double and
// std::int64_t.
//
//   all_reduce_fastest(values)                 every rank gets the same bits, which MPI requires of itself
//   reduce_scatter_fastest(values, counts)
//
// Up to 16 KiB the fixed order is as fast: one round of messages. Before a larger sum the ranks tell each other in such a round
// what they are about to add, as MPI itself does not check it: calls that differ, and a rank that does not come, end as in all
// other calls. MPI cannot call a sum off, so it reads and writes pieces of the library's memory, which it keeps where the run
// fails; a piece is as long as the longest message, so that an int counts it and the deadline sees progress.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/backend/transport/mpi_parcels.hpp>
#include <moiety/backend/transport/mpi_session.hpp>
#include <moiety/backend/transport/mpi_world.hpp>
#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

template <class T> MPI_Datatype mpi_type() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, std::int64_t>,
                "MPI's own sums are of float, double and std::int64_t.");
  return std::is_same_v<T, float> ? MPI_FLOAT : std::is_same_v<T, double> ? MPI_DOUBLE : MPI_INT64_T;
}

/// A sum on its way, and the memory that MPI reads and writes until it is there.
class mpi_sum {
 public:
  struct summands {
    mpi_room values, sum;
    std::vector<int> counts;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  explicit mpi_sum(mpi_world const& world) : world_(&world), all_(std::make_unique<summands>()) {}
  mpi_sum(mpi_sum const&) = delete;
  mpi_sum& operator=(mpi_sum const&) = delete;
  /// After a failure: waits a little, then leaves the memory to MPI.
  ~mpi_sum() {
    while (open() && !mpi_finalised() && std::chrono::steady_clock::now() < world_->grace()) {
      static_cast<void>(test());
      std::this_thread::yield();
    }
    if (open()) keep_for_ever(std::move(all_));
  }

  summands& memory() { return *all_; }
  bool open() const { return all_->request != MPI_REQUEST_NULL; }
  /// What MPI says of it; the request goes when it is there.
  int test() {
    int done = 0;
    return MPI_Test(&all_->request, &done, MPI_STATUS_IGNORE);
  }

 private:
  mpi_world const* world_;
  std::unique_ptr<summands> all_;
};

}  // namespace detail

/// The sums of a communicator; Derived gives the rest, group_ and step_.
template <class Derived> class mpi_sums : public collectives<Derived> {
  Derived& self() { return static_cast<Derived&>(*this); }

 public:
  template <exchangeable T> void all_reduce_fastest(std::span<T> values) {
    MPI_Datatype const type = detail::mpi_type<T>();
    if (values.size_bytes() <= this->few_bytes || self().size() == 1) return this->all_reduce(values);
    constexpr char const* name = "all_reduce_fastest";
    agree<T>(name, values.size(), std::vector<std::int64_t>(static_cast<std::size_t>(self().size())));
    auto const count = static_cast<std::int64_t>(values.size());
    int const rounds = rounds_of<T>(count);
    detail::mpi_sum sum(*self().group_->world);
    for (int round = 0; round < rounds; ++round) {
      range_of const part = slice_of(count, round, rounds);
      std::size_t const bytes = static_cast<std::size_t>(part.count) * sizeof(T);
      std::byte* const room = sum.memory().values.of(static_cast<std::int64_t>(bytes));
      std::memcpy(room, values.data() + part.first, bytes);
      int const code = MPI_Iallreduce(MPI_IN_PLACE, room, static_cast<int>(part.count), type, MPI_SUM, comm(),
                                      &sum.memory().request);
      await(name, code, sum);
      std::memcpy(values.data() + part.first, room, bytes);
    }
  }

  template <exchangeable T> void reduce_scatter_fastest(std::span<T> values, std::span<std::int64_t const> counts) {
    MPI_Datatype const type = detail::mpi_type<T>();
    constexpr char const* name = "reduce_scatter_fastest";
    this->check_counts(name, values.size(), counts);
    if (values.size_bytes() <= this->few_bytes || self().size() == 1) return this->reduce_scatter_v(values, counts);
    agree<T>(name, values.size(), counts);
    int const rounds = rounds_of<T>(static_cast<std::int64_t>(values.size()));
    detail::mpi_sum sum(*self().group_->world);
    for (int round = 0; round < rounds; ++round) {
      range_of const mine = pack<T>(values, counts, self().rank(), round, rounds, sum.memory());
      std::size_t const bytes = static_cast<std::size_t>(mine.count) * sizeof(T);
      std::byte* const room = sum.memory().sum.of(static_cast<std::int64_t>(bytes));
      int const code = MPI_Ireduce_scatter(sum.memory().values.data(), room, sum.memory().counts.data(), type, MPI_SUM,
                                           comm(), &sum.memory().request);
      await(name, code, sum);
      if (bytes > 0) std::memcpy(values.data() + mine.first, room, bytes);
    }
  }

 private:
  MPI_Comm comm() { return self().group_->comm; }

  template <class T> int rounds_of(std::int64_t count) {
    std::int64_t const most = std::max(self().group_->world->piece() / std::int64_t{sizeof(T)}, std::int64_t{1});
    return static_cast<int>((count + most - 1) / most);
  }

  template <class T> void agree(char const* name, std::size_t size, std::span<std::int64_t const> counts) {
    auto const parts = detail::rows_of_parts(counts, self().rank());
    self().finish(self().start({.name = name, .width = sizeof(T), .count = static_cast<std::int64_t>(size)},
                               parts.first, parts.second));
  }

  /// A slice of every part, one after another; where that of this rank lies among the values.
  template <class T>
  static range_of pack(std::span<T const> values, std::span<std::int64_t const> counts, int rank, int round, int rounds,
                       detail::mpi_sum::summands& to) {
    std::int64_t all = 0;
    to.counts.clear();
    for (std::int64_t const n : counts) {
      to.counts.push_back(static_cast<int>(slice_of(n, round, rounds).count));
      all += to.counts.back();
    }
    std::byte* room = to.values.of(all * std::int64_t{sizeof(T)});
    range_of mine;
    std::int64_t first = 0;
    for (std::size_t r = 0; r < counts.size(); first += counts[r++]) {
      range_of const part = slice_of(counts[r], round, rounds);
      std::size_t const bytes = static_cast<std::size_t>(part.count) * sizeof(T);
      if (bytes > 0) std::memcpy(room, values.data() + first + part.first, bytes);
      if (static_cast<int>(r) == rank) mine = {first + part.first, part.count};
      room += bytes;
    }
    return mine;
  }

  void await(char const* name, int code, detail::mpi_sum& sum) {
    detail::mpi_world& world = *self().group_->world;
    bool const there = world.wait([&] {
      if (code == MPI_SUCCESS && sum.open()) code = sum.test();
      if (code != MPI_SUCCESS) self().fail(comm_fault::aborted, name, "MPI says " + detail::mpi_text(code));
      return sum.open() ? detail::mpi_progress::none : detail::mpi_progress::all;
    });
    if (there) return;
    world.fail({comm_fault::timeout, name, -1, self().step_,
                self().text(name, "the sum was not there within " + world.deadline_words())});
    world.rethrow();
  }
};

}  // namespace moiety
