// SPDX-License-Identifier: Apache-2.0
// Runs a function on every rank of a run of threads, and tells what each rank threw.
#pragma once

#include <moiety/backend/transport/threads.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mo = moiety;

/// What a rank found to be wrong. It ends the run, so that no rank waits for it.
struct wrong_on_a_rank : std::logic_error {
  using std::logic_error::logic_error;
};

inline void expect(bool holds, std::string const& what = "", int line = __builtin_LINE()) {
  if (!holds) throw wrong_on_a_rank("line " + std::to_string(line) + ": " + what);
}

/// The error of this type that a call throws.
template <class Error, class Call> Error expect_throws(Call const& call, int line = __builtin_LINE()) {
  try {
    call();
  } catch (Error const& error) {
    return error;
  }
  throw wrong_on_a_rank("line " + std::to_string(line) + ": nothing was thrown");
}

using outcomes = std::vector<std::exception_ptr>;

/// The error of this type that a rank threw, if it did.
template <class Error> std::optional<Error> thrown(std::exception_ptr const& outcome) {
  if (outcome == nullptr) return std::nullopt;
  try {
    std::rethrow_exception(outcome);
  } catch (Error const& error) {
    return error;
  } catch (...) {
  }
  return std::nullopt;
}

class thread_ranks {
 public:
  using body = std::function<void(mo::thread_communicator&)>;

  explicit thread_ranks(int ranks, mo::run_options const& options = {.deadline = std::chrono::minutes(2)})
      : world(std::make_shared<mo::detail::thread_world>(ranks, options)) {
    std::vector<int> all(static_cast<std::size_t>(ranks));
    std::iota(all.begin(), all.end(), 0);
    group = std::make_shared<mo::detail::thread_group>(world, std::move(all), "world");
  }

  outcomes run(body const& of_rank) {
    outcomes all(static_cast<std::size_t>(group->size()));
    std::vector<std::thread> others;
    for (int r = 1; r < group->size(); ++r) others.emplace_back([&, r] { one(r, of_rank, all); });
    one(0, of_rank, all);
    for (std::thread& other : others) other.join();
    return all;
  }

  /// Whether a rank has begun this many operations in the group of all.
  bool has_begun(int rank, std::int64_t operations) const { return group->of(rank).posted.load() >= operations; }

  std::shared_ptr<mo::detail::thread_world> world;
  std::shared_ptr<mo::detail::thread_group> group;

 private:
  void one(int rank, body const& of_rank, outcomes& all) {
    try {
      mo::thread_communicator ranks(group, rank);
      of_rank(ranks);
    } catch (...) {
      all[static_cast<std::size_t>(rank)] = std::current_exception();
      world->fail({mo::comm_fault::aborted, "run", rank, 0, mo::detail::sentence("rank ", rank, " threw.")});
    }
    world->leave(rank);
  }
};

/// Runs a function on so many ranks, none of which may throw; what a rank found to be wrong comes out first.
inline void on_ranks(int ranks, thread_ranks::body const& of_rank) {
  std::exception_ptr first = nullptr;
  for (std::exception_ptr const& outcome : thread_ranks(ranks).run(of_rank)) {
    if (outcome != nullptr && !thrown<mo::comm_error>(outcome)) std::rethrow_exception(outcome);
    if (first == nullptr) first = outcome;
  }
  if (first != nullptr) std::rethrow_exception(first);
}

/// A clock that shows ten seconds more whenever it is read.
inline std::chrono::steady_clock::time_point hasty_clock() {
  static std::atomic<std::int64_t> readings{0};
  return std::chrono::steady_clock::time_point(std::chrono::seconds(10 * readings.fetch_add(1)));
}

/// A clock that stands still until it is set forward.
struct set_clock {
  static inline std::atomic<std::int64_t> seconds{0};
  static std::chrono::steady_clock::time_point now() {
    return std::chrono::steady_clock::time_point(std::chrono::seconds(seconds.load()));
  }
};
