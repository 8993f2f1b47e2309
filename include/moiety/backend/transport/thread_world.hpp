// SPDX-License-Identifier: Apache-2.0
// What all ranks of a run share that are threads of this process: how they wait for each other, and how the run fails.
#pragma once

#include <moiety/backend/thread_pool.hpp>
#include <moiety/backend/transport/run_options.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

enum class waited { met, failed, left, late };

class thread_world {
 public:
  thread_world(int ranks, run_options const& options)
      : options_(options),
        awake_turns_(ranks <= available_processors() ? 4000 : 0),
        ranks_(static_cast<std::size_t>(ranks)) {
    require<config_error>(options.deadline.count() > 0, "the deadline of a run must be positive.");
  }

  /// Another rank may have become able to go on.
  void wake() {
    if (asleep_.load() == 0) return;
    { std::scoped_lock const lock(mutex_); }
    changed_.notify_all();
  }

  /// Waits for a condition that rank `peer` will meet.
  template <class Condition> waited wait(Condition const& condition, int peer) {
    for (int turn = 0; turn < awake_turns_ + 20; ++turn) {
      if (condition()) return waited::met;
      if (failed()) return waited::failed;
      turn < awake_turns_ ? relax() : std::this_thread::yield();
    }
    auto const begin = options_.now();
    std::unique_lock lock(mutex_);
    asleep_.fetch_add(1);
    waited result = waited::late;
    for (;;) {
      bool const gone = at(peer).left.load();  // before the condition, which a rank meets before it leaves
      if (condition())
        result = waited::met;
      else if (failed())
        result = waited::failed;
      else if (gone)
        result = waited::left;
      else if (options_.now() - begin < options_.deadline) {
        changed_.wait_for(lock, std::min<std::chrono::milliseconds>(options_.deadline, std::chrono::milliseconds(20)));
        continue;
      }
      break;
    }
    asleep_.fetch_sub(1);
    return result;
  }

  std::string deadline_words() const { return sentence(options_.deadline.count(), " ms"); }

  bool failed() const { return failed_.load(); }

  /// The run fails; only the first failure counts.
  void fail(failure_record record) noexcept {
    {
      std::scoped_lock const lock(failure_mutex_);
      if (failure_) return;
      failure_ = std::move(record);
      failed_.store(true);
    }
    { std::scoped_lock const lock(mutex_); }
    changed_.notify_all();
  }

  std::optional<failure_record> failure() const {
    std::scoped_lock const lock(failure_mutex_);
    return failure_;
  }

  /// Throws the failure as rank `me` sees it.
  [[noreturn]] void rethrow(int me) const {
    failure_record const record = failure().value();
    comm_fault fault = record.fault;
    if (fault == comm_fault::aborted && record.rank != me) fault = comm_fault::remote;
    if (fault == comm_fault::remote && record.rank == me) fault = comm_fault::aborted;
    throw comm_error(fault, record.operation, record.rank, record.step, record.what);
  }

  /// The function of a rank has returned.
  void leave(int rank) {
    at(rank).left.store(true);
    { std::scoped_lock const lock(mutex_); }
    changed_.notify_all();
  }

  void begin_reading(int rank) { at(rank).readers.fetch_add(1); }
  void end_reading(int rank) { at(rank).readers.fetch_sub(1); }
  /// After a failure: returns once no other rank reads this one's memory. They begin no more, see reading.
  void await_readers(int rank) noexcept {
    while (at(rank).readers.load() != 0) std::this_thread::yield();
  }

 private:
  struct alignas(64) rank_state {
    std::atomic<bool> left{false};
    std::atomic<int> readers{0};
  };
  rank_state& at(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }

  run_options options_;
  int awake_turns_;
  std::vector<rank_state> ranks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<int> asleep_{0};
  std::atomic<bool> failed_{false};
  mutable std::mutex failure_mutex_;
  std::optional<failure_record> failure_;
};

/// Marks that memory of a rank is read. Who marks, then finds the run in order, may read: a rank that fails lets its memory go
/// only after it has seen no mark since.
class reading {
 public:
  reading(thread_world& world, int rank) : world_(world), rank_(rank) { world_.begin_reading(rank_); }
  reading(reading const&) = delete;
  reading& operator=(reading const&) = delete;
  ~reading() { world_.end_reading(rank_); }

 private:
  thread_world& world_;
  int rank_;
};

}  // namespace detail

}  // namespace moiety
