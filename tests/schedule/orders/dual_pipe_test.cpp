// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/dual_pipe.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("DualPipe is sound, with the bubble and memory that it states") {
  formulas::sound<mo::dual_pipe>(2);
  formulas::for_each_shape<mo::dual_pipe>(2, [](mo::pipeline_shape const& shape) {
    auto const plan = mo::make_schedule(mo::dual_pipe{}, shape);
    for (int unit = 1; unit <= 3; ++unit) {
      mo::step_costs const c{.forward = unit, .input_gradient = unit, .weight_gradient = unit};
      CHECK(mo::bubble(plan, c) == (shape.ranks / 2 - 1) * (3 * unit + 2 * unit - 3 * unit));
    }
    CHECK(formulas::worst_peak(plan) == shape.ranks + 1);
  });
}

TEST_CASE("DualPipe: rank 1 of 4 works on stage 1 for one direction and on stage 2 for the other") {
  auto const plan = mo::make_schedule(mo::dual_pipe{}, {.ranks = 4, .chunks = 2, .microbatches = 8});
  CHECK(
      formulas::row(plan, 1) ==
      "1F0 2F4 1F1 2F5 1F2 2B4 (2F6;1B0)OVERLAP_F_B (1F3;2B5)OVERLAP_F_B (2F7;1B1)OVERLAP_F_B 2B6 1B2 2I7 1I3 2W7 1W3");
}

TEST_CASE("DualPipe refuses odd numbers of ranks or micro-batches, and too few of these") {
  auto const fault = [](int p, int v, int m) {
    return mo::fault_of<mo::dual_pipe>({.ranks = p, .chunks = v, .microbatches = m});
  };
  CHECK(fault(3, 2, 8) == mo::shape_fault::odd_ranks);
  CHECK(fault(4, 2, 9) == mo::shape_fault::odd_microbatches);
  CHECK(fault(4, 2, 6) == mo::shape_fault::microbatches_below_twice_ranks);
  CHECK(fault(4, 1, 8) == mo::shape_fault::not_two_chunks);
}
