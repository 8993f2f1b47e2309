// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

/// A clock that shows ten seconds more whenever it is read after the fault.
struct clock_of_fault {
  static inline std::atomic<bool> happened{false};
  static inline std::atomic<std::int64_t> seconds{0};
  static std::chrono::steady_clock::time_point now() {
    if (happened.load()) seconds += 10;
    return std::chrono::steady_clock::time_point(std::chrono::seconds(seconds.load()));
  }
};
