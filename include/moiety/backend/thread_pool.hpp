// SPDX-License-Identifier: Apache-2.0
// A pool of threads that shares out the tasks of one call at a time.
//
// parallel(tasks, f) calls f(task, worker) once for every task in [0, tasks); worker in [0, threads()) names the thread
// (0 is the caller), so that f can keep memory of its own. Tasks are taken from one atomic counter, in ascending order.
// The first exception stops the hand-out of further tasks and is thrown to the caller. Calls from several threads take
// turns; a call from inside a task is a state_error, and threads that cannot be had are a resource_error. Results must not
// depend on which worker ran a task.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif

namespace moiety::inline MOIETY_ABI {

/// Processors that this process may run on.
inline int available_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

/// The number of threads for a request: the request, else MOIETY_NUM_THREADS, else OMP_NUM_THREADS, else one a processor.
/// Without a request, never more than the processors that the process may run on.
inline int thread_count(int requested) {
  detail::require<config_error>(requested >= 0, "mo::host{.threads} must not be negative, but is ", requested, '.');
  if (requested > 0) return requested;
  int const processors = available_processors();
  for (char const* name : {"MOIETY_NUM_THREADS", "OMP_NUM_THREADS"})
    if (char const* text = std::getenv(name); text != nullptr)
      if (int const wanted = std::atoi(text); wanted > 0) return std::min(wanted, processors);
  return processors;
}

namespace detail {
/// Tells the processor that this thread waits for another.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}
}  // namespace detail

class thread_pool {
 public:
  explicit thread_pool(int threads) : awake_turns_(threads <= available_processors() ? 2000 : 0) {
    try {
      for (int worker = 1; worker < threads; ++worker) others_.emplace_back([this, worker] { serve(worker); });
    } catch (std::exception const& error) {
      end();
      throw resource_error(
          detail::sentence("only ", others_.size() + 1, " of ", threads, " threads could be had: ", error.what(), '.'));
    }
  }
  thread_pool(thread_pool const&) = delete;
  thread_pool& operator=(thread_pool const&) = delete;
  ~thread_pool() { end(); }

  int threads() const { return static_cast<int>(others_.size()) + 1; }

  template <class Function> void parallel(std::int64_t tasks, Function&& function) {
    if (tasks <= 0) return;
    detail::require<state_error>(running_in() != this, "parallel was called from inside one of its own tasks.");
    std::scoped_lock const turn(turn_);
    using plain = std::remove_reference_t<Function>;
    function_ = std::addressof(function);
    invoke_ = [](void const* f, std::int64_t task, int worker) {
      (*const_cast<plain*>(static_cast<plain const*>(f)))(task, worker);
    };
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    failure_ = nullptr;
    failed_.store(false, std::memory_order_relaxed);
    bool const alone = tasks == 1 || others_.empty();
    if (!alone) {
      busy_.store(static_cast<int>(others_.size()));
      epoch_.fetch_add(1);
      epoch_.notify_all();
    }
    work(0);
    if (!alone)
      for (int left = busy_.load(); left != 0; left = busy_.load()) await_change(busy_, left);
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void end() {
    stop_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& other : others_) other.join();
  }

  static thread_pool const*& running_in() {
    thread_local thread_pool const* pool = nullptr;
    return pool;
  }

  void serve(int worker) {
    for (std::uint64_t seen = 0;;) {
      await_change(epoch_, seen);
      seen = epoch_.load();
      if (stop_.load()) return;
      work(worker);
      if (busy_.fetch_sub(1) == 1) busy_.notify_all();
    }
  }

  /// Returns once the value is another: awake for a while, as to wake a thread takes longer than most tasks, then asleep.
  template <class T> void await_change(std::atomic<T> const& value, T seen) const {
    for (int turn = 0; turn < awake_turns_; ++turn) {
      if (value.load(std::memory_order_acquire) != seen) return;
      detail::relax();
    }
    value.wait(seen);
  }

  void work(int worker) {
    running_in() = this;
    try {
      for (std::int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;)
        invoke_(function_, task, worker);
    } catch (...) {
      if (!failed_.exchange(true)) failure_ = std::current_exception();
      next_.store(tasks_, std::memory_order_relaxed);
    }
    running_in() = nullptr;
  }

  int awake_turns_;  // some 50 µs; none where threads share a processor
  std::mutex turn_;
  void const* function_ = nullptr;
  void (*invoke_)(void const*, std::int64_t, int) = nullptr;
  std::int64_t tasks_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<bool> stop_{false}, failed_{false};
  std::exception_ptr failure_;
  std::vector<std::thread> others_;
};

}  // namespace moiety
