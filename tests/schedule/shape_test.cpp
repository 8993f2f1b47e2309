// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/shape.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("sizes that no order accepts") {
  CHECK(mo::fault_of_sizes({.ranks = 0}) == mo::shape_fault::no_ranks);
  CHECK(mo::fault_of_sizes({.ranks = -4}) == mo::shape_fault::no_ranks);
  CHECK(mo::fault_of_sizes({.chunks = 0}) == mo::shape_fault::no_chunks);
  CHECK(mo::fault_of_sizes({.microbatches = 0}) == mo::shape_fault::no_microbatches);
  CHECK(mo::fault_of_sizes({.group = -1}) == mo::shape_fault::negative_group);
  CHECK(mo::fault_of_sizes({.ranks = 1 << 16, .chunks = 1 << 16}) == mo::shape_fault::too_large);
  CHECK(mo::fault_of_sizes({.ranks = 1 << 14, .microbatches = 1 << 14}) == mo::shape_fault::too_large);
  CHECK(mo::fault_of_sizes({.ranks = 64, .chunks = 4, .microbatches = 4096}) == mo::shape_fault::none);
}

TEST_CASE("every fault has a sentence, and none has none") {
  for (int f = 1; f <= static_cast<int>(mo::shape_fault::odd_microbatches); ++f)
    CHECK(mo::sentence_of(static_cast<mo::shape_fault>(f)).size() > 10);
  CHECK(mo::sentence_of(mo::shape_fault::none).empty());
  CHECK(mo::sentence_of(mo::shape_fault::group_below_ranks) == "group size must be at least the number of ranks");
}

TEST_CASE("the first of several faults is the one that is told") {
  using mo::shape_fault;
  CHECK(mo::detail::first_of(shape_fault::none, shape_fault::odd_ranks, shape_fault::no_ranks) ==
        shape_fault::odd_ranks);
  CHECK(mo::detail::first_of(shape_fault::none, shape_fault::none) == shape_fault::none);
}
