// SPDX-License-Identifier: Apache-2.0
// How long an operation may wait for other ranks, by which clock, and what is known of the failure that ends a run.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <chrono>
#include <cstdint>
#include <string>

namespace moiety::inline MOIETY_ABI {

struct run_options {
  std::chrono::milliseconds deadline = std::chrono::seconds(120);
  std::chrono::steady_clock::time_point (*now)() = &std::chrono::steady_clock::now;
};

namespace detail {

struct failure_record {
  comm_fault fault;
  std::string operation;
  int rank;
  std::int64_t step;
  std::string what;
};

}  // namespace detail

}  // namespace moiety
