// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/self.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <span>
#include <vector>

namespace mo = moiety;

namespace {
struct no_size {
  int rank() const { return 0; }
};
}  // namespace

static_assert(mo::communicator<mo::self::communicator> && !mo::communicator<no_size>);

TEST_CASE("one rank: sums are what they were") {
  mo::self::communicator alone;
  CHECK(alone.rank() == 0);
  CHECK(alone.size() == 1);
  std::vector<std::int64_t> counts{1, 2, 3};
  alone.all_reduce(std::span(counts));
  CHECK(counts == std::vector<std::int64_t>{1, 2, 3});
}
