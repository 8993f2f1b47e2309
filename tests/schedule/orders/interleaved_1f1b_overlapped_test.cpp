// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/interleaved_1f1b_overlapped.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

#include <algorithm>

namespace mo = moiety;

TEST_CASE("overlapped interleaved 1F1B is sound, with the bubble and memory that it states") {
  for (int const chunks : {2, 3}) {
    formulas::sound<mo::interleaved_1f1b_overlapped>(chunks);
    formulas::for_each_shape<mo::interleaved_1f1b_overlapped>(chunks, [&](mo::pipeline_shape const& shape) {
      auto const plain = mo::make_schedule(mo::interleaved_1f1b{}, shape);
      auto const overlapped = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, shape);
      CAPTURE(shape.ranks);
      CAPTURE(shape.microbatches);
      for (int r = 0; r < shape.ranks; ++r)
        CHECK(mo::peak_activations(overlapped, r) ==
              std::min<std::int64_t>(mo::peak_activations(plain, r) + 1, chunks * shape.microbatches));
      formulas::for_each_costs(
          [&](mo::step_costs const& c) { CHECK(mo::makespan(overlapped, c) == mo::makespan(plain, c)); });
    });
  }
}

TEST_CASE("a joined step hides what it saves, others save nothing") {
  mo::pipeline_shape const shape{.ranks = 4, .chunks = 2, .microbatches = 8};
  mo::step_costs const hiding{.hidden = 1};
  CHECK(mo::makespan(mo::make_schedule(mo::interleaved_1f1b_overlapped{}, shape), hiding) == 46);
  CHECK(mo::makespan(mo::make_schedule(mo::interleaved_1f1b{}, shape), hiding) == 57);
}

TEST_CASE("one rank overlaps a forward with the backward before it; more ranks need two chunks") {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, {.ranks = 1, .microbatches = 3});
  CHECK(formulas::text(plan) == "0F0 (0F1;0B0)OVERLAP_F_B (0F2;0B1)OVERLAP_F_B 0B2");
  auto const fault = [](mo::pipeline_shape const& shape) {
    return mo::fault_of<mo::interleaved_1f1b_overlapped>(shape);
  };
  CHECK(fault({.ranks = 2, .microbatches = 8}) == mo::shape_fault::fewer_than_two_chunks);
  CHECK(fault({.ranks = 4, .chunks = 2, .microbatches = 8, .group = 3}) == mo::shape_fault::group_below_ranks);
  CHECK(fault({.ranks = 1, .chunks = 3, .microbatches = 2}) == mo::shape_fault::none);
}
