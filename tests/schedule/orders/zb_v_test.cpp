// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/zb_v.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("ZB-V is sound, without a bubble of its own, at the memory of 1F1B") {
  formulas::sound<mo::zb_v>(2);
  formulas::for_each_shape<mo::zb_v>(2, [](mo::pipeline_shape const& shape) {
    if (shape.microbatches < 2 * shape.ranks - 1) return;
    auto const plan = mo::make_schedule(mo::zb_v{}, shape);
    CHECK(mo::rank_span_bubble(plan, mo::unit_costs) == 0);
    CHECK(mo::bubble(plan, mo::unit_costs) == shape.ranks - 1);
    CHECK(formulas::worst_peak(plan) == 2 * shape.ranks);
  });
}

TEST_CASE("ZB-V: rank 1 of 4 with 8 micro-batches holds stages 1 and 6") {
  auto const plan = mo::make_schedule(mo::zb_v{}, {.ranks = 4, .chunks = 2, .microbatches = 8});
  CHECK(
      formulas::row(plan, 1) ==
      "1F0 1F1 1F2 1F3 1F4 6F0 1F5 6F1 6I0 6W0 6F2 6I1 6W1 6F3 6I2 6W2 1F6 1I0 1W0 6F4 6I3 6W3 1F7 1I1 1W1 6F5 6I4 6W4 "
      "1I2 1W2 6F6 6I5 6W5 1I3 1W3 6F7 6I6 6W6 1I4 6I7 1I5 1W4 1I6 1W5 1I7 1W6 6W7 1W7");
  CHECK(mo::fault_of<mo::zb_v>({.ranks = 4, .chunks = 3, .microbatches = 8}) == mo::shape_fault::not_two_chunks);
}
