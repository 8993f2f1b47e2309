// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/dual_pipe_v.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("DualPipeV is sound, with the bubble and memory that it states") {
  formulas::sound<mo::dual_pipe_v>(2);
  formulas::for_each_shape<mo::dual_pipe_v>(2, [](mo::pipeline_shape const& shape) {
    auto const plan = mo::make_schedule(mo::dual_pipe_v{}, shape);
    for (int unit = 1; unit <= 3; ++unit) {
      mo::step_costs const c{.forward = unit, .input_gradient = unit, .weight_gradient = unit};
      CHECK(mo::bubble(plan, c) == (shape.ranks - 1) * (3 * unit + 2 * unit - 3 * unit));
    }
    CHECK(formulas::worst_peak(plan) == 2 * shape.ranks + 1);
  });
}

TEST_CASE("DualPipeV: rank 2 of 4 with 8 micro-batches holds stages 2 and 5") {
  auto const plan = mo::make_schedule(mo::dual_pipe_v{}, {.ranks = 4, .chunks = 2, .microbatches = 8});
  CHECK(formulas::row(plan, 2) ==
        "2F0 2F1 2F2 5F0 2F3 5F1 2F4 5F2 5I0 5W0 5F3 (2F5;5B1)OVERLAP_F_B (5F4;2B0)OVERLAP_F_B (2F6;5B2)OVERLAP_F_B "
        "(5F5;2B1)OVERLAP_F_B (2F7;5B3)OVERLAP_F_B (5F6;2B2)OVERLAP_F_B 5B4 (5F7;2B3)OVERLAP_F_B 5B5 2B4 5B6 2I5 5I7 "
        "2I6 2W5 2I7 5W7 2W6 2W7");
}

TEST_CASE("the first pair of the last rank is not joined: its backward needs its forward") {
  auto const plan = mo::make_schedule(mo::dual_pipe_v{}, {.ranks = 4, .chunks = 2, .microbatches = 8});
  CHECK(formulas::row(plan, 3).find("3F4 4B0 (4F4;3B0)OVERLAP_F_B") != std::string::npos);
}

TEST_CASE("DualPipeV refuses other than two chunks, groups, and too few micro-batches") {
  auto const fault = [](mo::pipeline_shape const& shape) { return mo::fault_of<mo::dual_pipe_v>(shape); };
  CHECK(fault({.ranks = 4, .chunks = 2, .microbatches = 7}) == mo::shape_fault::microbatches_below_twice_ranks);
  CHECK(fault({.ranks = 4, .chunks = 1, .microbatches = 8}) == mo::shape_fault::not_two_chunks);
  CHECK(fault({.ranks = 4, .chunks = 2, .microbatches = 8, .group = 4}) == mo::shape_fault::group_unused);
  CHECK(fault({.ranks = 3, .chunks = 2, .microbatches = 7}) == mo::shape_fault::none);
}
