// SPDX-License-Identifier: Apache-2.0
// How long an operation may wait for other ranks, by which clock.
#pragma once

#include <moiety/core/config.hpp>

#include <chrono>

namespace moiety::inline MOIETY_ABI {

struct run_options {
  std::chrono::milliseconds deadline = std::chrono::seconds(120);
  std::chrono::steady_clock::time_point (*now)() = &std::chrono::steady_clock::now;
};

}  // namespace moiety
