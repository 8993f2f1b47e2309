// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/run_options.hpp>

#include <doctest/doctest.h>

#include <chrono>

TEST_CASE("a rank waits two minutes by a clock that never goes back, unless it is told") {
  moiety::run_options const options;
  CHECK(options.deadline == std::chrono::minutes(2));
  auto const first = options.now();
  CHECK(options.now() >= first);
  CHECK(moiety::run_options{.deadline = std::chrono::seconds(30)}.deadline == std::chrono::milliseconds(30'000));
}
