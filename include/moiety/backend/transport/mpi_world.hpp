// SPDX-License-Identifier: Apache-2.0
// How ranks that are processes wait for each other, and how their run fails.
//
// A failed rank tells every other by a small message on a communicator of its own; ranks look for such messages while they
// wait, and now and then as they begin to communicate. The last communicator of a run, where an exception takes it down, tells of that.
#pragma once

#include <moiety/backend/transport/mpi_boards.hpp>
#include <moiety/backend/transport/mpi_parcels.hpp>
#include <moiety/backend/transport/mpi_session.hpp>
#include <moiety/backend/transport/run_options.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

class mpi_world {
 public:
  /// `boards`: whether ranks of one machine exchange rows by memory that they share, the same on every rank.
  mpi_world(run_options const& options, std::int64_t longest_message, bool boards = true)
      : options_(options), piece_(longest_message) {
    require<config_error>(options.deadline.count() > 0, "the deadline of a run must be positive.");
    require<config_error>(piece_ > 0 && piece_ <= largest_piece, "a message of MPI has 1 to 2^30 bytes, not ", piece_,
                          '.');
    mpi_session::get();
    require<config_error>(!mpi_finalised(), "MPI has been finalised: no rank can communicate any more.");
    int provided = 0;
    MPI_Query_thread(&provided);
    require_thread_level(provided);
    control_ = duplicate(MPI_COMM_WORLD);
    MPI_Comm_set_errhandler(control_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(control_, &rank_);
    MPI_Comm_size(control_, &size_);
    MPI_Comm here = MPI_COMM_NULL;
    MPI_Comm_split_type(control_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &here);
    auto const neighbours = ranks_in(here);
    MPI_Comm_free(&here);
    if (static_cast<long>(neighbours.size()) > ::sysconf(_SC_NPROCESSORS_ONLN)) awake_ = {};
    near_.resize(static_cast<std::size_t>(size_));
    if (boards)
      for (int const r : neighbours) near_[static_cast<std::size_t>(r)] = true;
  }
  mpi_world(mpi_world const&) = delete;
  mpi_world& operator=(mpi_world const&) = delete;
  ~mpi_world() {
    if (mpi_finalised()) return;
    if (unwinding()) fail({comm_fault::aborted, "run", rank_, 0, sentence("an exception has ended rank ", rank_, '.')});
    if (!failed()) MPI_Comm_free(&control_);
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm control() const { return control_; }
  /// The longest message in bytes; longer ones go in pieces, so that an int counts them and progress is seen.
  std::int64_t piece() const { return piece_; }
  /// The ranks of the world that are those of a communicator.
  std::vector<int> ranks_in(MPI_Comm comm) const {
    MPI_Group some = MPI_GROUP_NULL, all = MPI_GROUP_NULL;
    MPI_Comm_group(comm, &some);
    MPI_Comm_group(control_, &all);
    int count = 0;
    MPI_Group_size(some, &count);
    std::vector<int> ranks(static_cast<std::size_t>(count)), in_world(ranks.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    MPI_Group_translate_ranks(some, count, ranks.data(), all, in_world.data());
    MPI_Group_free(&some);
    MPI_Group_free(&all);
    return in_world;
  }
  /// Whether a rank may read a board of this one, see mpi_boards.hpp.
  bool near(int rank) const { return near_[static_cast<std::size_t>(rank)]; }
  std::string deadline_words() const { return sentence(options_.deadline.count(), " ms"); }

  bool failed() const { return failure_.has_value(); }
  /// Whether an exception takes down who holds this.
  bool unwinding() const { return std::uncaught_exceptions() > exceptions_; }

  /// The run fails; only the first failure counts.
  void fail(failure_record record) noexcept {
    if (failed()) return;
    take(std::move(record));
    auto& words = keep_for_ever(last_words{});
    words = {static_cast<std::int32_t>(failure_->fault), failure_->rank, failure_->step, {}, {}};
    copy_text(words.operation, failure_->operation);
    copy_text(words.text, failure_->what);
    for (int r = 0; r < size_ && !mpi_finalised(); ++r) {
      MPI_Request sent = MPI_REQUEST_NULL;
      if (r != rank_ && MPI_Isend(&words, sizeof words, MPI_BYTE, r, 0, control_, &sent) == MPI_SUCCESS)
        MPI_Request_free(&sent);
    }
  }

  /// What every operation begins with. It looks one time in sixteen: a look takes a tenth of a small operation, and who waits
  /// looks, too.
  void begin() {
    if (failed() || begun_++ % 16 == 0) look();
  }

  /// Throws if this rank or another has failed.
  void look() {
    int there = 0;
    MPI_Status status;
    if (!failed()) MPI_Iprobe(MPI_ANY_SOURCE, 0, control_, &there, &status);
    if (there != 0) {
      last_words words{};
      MPI_Recv(&words, sizeof words, MPI_BYTE, status.MPI_SOURCE, 0, control_, MPI_STATUS_IGNORE);
      take({static_cast<comm_fault>(words.fault), words.operation, words.rank, words.step, words.text});
    }
    if (failed()) rethrow();
  }

  /// Throws the failure as this rank sees it.
  [[noreturn]] void rethrow() const {
    comm_fault fault = failure_->fault;
    if (fault == comm_fault::aborted && failure_->rank != rank_) fault = comm_fault::remote;
    if (fault == comm_fault::remote && failure_->rank == rank_) fault = comm_fault::aborted;
    throw comm_error(fault, failure_->operation, failure_->rank, failure_->step, failure_->what);
  }

  /// Until when a failed rank waits for its messages, so that nobody reads memory that is gone.
  std::chrono::steady_clock::time_point grace() const { return failed_at_ + std::chrono::milliseconds(500); }

  /// Polls until all is there; false if nothing has come for the length of the deadline.
  template <class Poll> bool wait(Poll const& poll) {
    std::chrono::steady_clock::time_point begin{};
    bool begun = false;
    for (int turn = 1;; ++turn) {
      mpi_progress const now = poll();
      if (now == mpi_progress::all) return true;
      if (now == mpi_progress::some) turn = 0, begun = false;
      if (turn % turns != turns - 1) continue;
      if (has_control()) look();
      auto const time = options_.now();
      if (!begun) begin = time, begun = true;
      auto const waited = time - begin;
      if (waited >= options_.deadline) return false;
      if (waited < awake_) continue;
      waited < std::chrono::milliseconds(100) ? std::this_thread::yield()
                                              : std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  /// A communicator of the ranks of another, all of which make it.
  MPI_Comm duplicate(MPI_Comm of) {
    auto& here = keep_for_ever(MPI_Request{MPI_REQUEST_NULL});
    MPI_Ibarrier(of, &here);
    bool const all_here = wait([&] {
      int done = 0;
      MPI_Test(&here, &done, MPI_STATUS_IGNORE);
      return done != 0 ? mpi_progress::all : mpi_progress::none;
    });
    if (!all_here) {
      fail(
          {comm_fault::timeout, "world", -1, 0, sentence("world: a rank did not come within ", deadline_words(), '.')});
      rethrow();
    }
    MPI_Comm copy = MPI_COMM_NULL;
    MPI_Comm_dup(of, &copy);
    return copy;
  }

 private:
  static constexpr std::int64_t largest_piece = std::int64_t{1} << 30;
  static constexpr int turns = 16;  // polls before a look at the clock

  struct last_words {
    std::int32_t fault, rank;
    std::int64_t step;
    char operation[40];
    char text[232];
  };

  bool has_control() const { return control_ != MPI_COMM_NULL; }

  void take(failure_record record) {
    failed_at_ = std::chrono::steady_clock::now();
    mpi_session::get().limit_patience(options_.deadline);
    failure_ = std::move(record);
  }

  run_options options_;
  std::int64_t piece_;
  MPI_Comm control_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 0;
  std::vector<bool> near_;
  std::uint32_t begun_ = 0;
  std::chrono::microseconds awake_{1000};  // of waiting, where every rank has a processor
  int exceptions_ = std::uncaught_exceptions();
  std::optional<failure_record> failure_;
  std::chrono::steady_clock::time_point failed_at_;
};

/// The ranks of one group, and the communicator of MPI that is theirs alone. Made by all of them at once.
struct mpi_group {
  mpi_group(std::shared_ptr<mpi_world> of, MPI_Comm its, std::string of_name)
      : world(std::move(of)), comm(its), name(std::move(of_name)), world_ranks(world->ranks_in(comm)) {
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    std::vector<bool> near;
    for (int const r : world_ranks) near.push_back(world->near(r));
    boards.emplace(comm, near, rank);
  }
  mpi_group(mpi_group const&) = delete;
  mpi_group& operator=(mpi_group const&) = delete;
  ~mpi_group() {
    if (!world->failed() && !world->unwinding() && !mpi_finalised()) MPI_Comm_free(&comm);
  }

  int world_rank(int r) const { return world_ranks[static_cast<std::size_t>(r)]; }

  std::shared_ptr<mpi_world> world;
  MPI_Comm comm;
  std::string name;
  int rank = 0, size = 0;
  std::vector<int> world_ranks;
  std::int64_t started = 0, finished = 0;
  mpi_spare spare;
  std::optional<mpi_boards> boards;
};

}  // namespace detail

}  // namespace moiety
