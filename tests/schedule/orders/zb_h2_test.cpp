// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/zb_h2.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

#include <algorithm>

namespace mo = moiety;

TEST_CASE("ZB-H2 is sound, with the bubble and memory that it states") {
  formulas::sound<mo::zb_h2>(1);
  formulas::for_each_shape<mo::zb_h2>(1, [](mo::pipeline_shape const& shape) {
    if (shape.microbatches < 2 * shape.ranks - 1) return;
    auto const plan = mo::make_schedule(mo::zb_h2{}, shape);
    formulas::for_each_costs([&](mo::step_costs const& c) {
      if (c.weight_gradient > c.forward) return;
      std::int64_t const bubble = (shape.ranks - 1) * (c.forward + c.input_gradient - 2 * c.weight_gradient);
      CHECK(mo::rank_span_bubble(plan, c) == std::max(bubble, std::int64_t{0}));
    });
    for (int unit = 1; unit <= 3; ++unit)
      CHECK(mo::bubble(plan, mo::step_costs{.forward = unit, .input_gradient = unit, .weight_gradient = unit}) ==
            (shape.ranks - 1) * unit);
    for (int r = 0; r < shape.ranks; ++r) CHECK(mo::peak_activations(plan, r) == 2 * shape.ranks - 1);
  });
}

TEST_CASE("ZB-H2: rank 3 of 4 with 8 micro-batches") {
  auto const plan = mo::make_schedule(mo::zb_h2{}, {.ranks = 4, .microbatches = 8});
  CHECK(formulas::row(plan, 3) ==
        "3F0 3I0 3F1 3I1 3F2 3I2 3F3 3I3 3F4 3I4 3F5 3I5 3F6 3I6 3W0 3F7 3I7 3W1 3W2 3W3 3W4 3W5 3W6 3W7");
}

TEST_CASE("a barrier at the end of a step takes from ZB-H2 what it wins over ZB-H1") {
  mo::pipeline_shape const shape{.ranks = 4, .microbatches = 8};
  auto const one = mo::make_schedule(mo::zb_h1{}, shape), two = mo::make_schedule(mo::zb_h2{}, shape);
  CHECK(mo::makespan(one, mo::unit_costs) == mo::makespan(two, mo::unit_costs));
  CHECK(mo::rank_span_bubble(one, mo::unit_costs) == 3);
  CHECK(mo::rank_span_bubble(two, mo::unit_costs) == 0);
}
