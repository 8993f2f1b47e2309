// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/zb_h1.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

#include <algorithm>

namespace mo = moiety;

TEST_CASE("ZB-H1 is sound, with the bubble and memory that it states") {
  formulas::sound<mo::zb_h1>(1);
  formulas::for_each_shape<mo::zb_h1>(1, [](mo::pipeline_shape const& shape) {
    if (shape.microbatches < shape.ranks) return;
    auto const plan = mo::make_schedule(mo::zb_h1{}, shape);
    formulas::for_each_costs([&](mo::step_costs const& c) {
      std::int64_t const bubble = (shape.ranks - 1) * (c.forward + c.input_gradient - c.weight_gradient);
      if (c.weight_gradient <= c.forward) CHECK(mo::rank_span_bubble(plan, c) == bubble);
      if (c.weight_gradient <= std::min(c.forward, c.input_gradient)) CHECK(mo::bubble(plan, c) == bubble);
    });
    for (int r = 0; r < shape.ranks; ++r) CHECK(mo::peak_activations(plan, r) == shape.ranks);
  });
}

TEST_CASE("ZB-H1: rank 2 of 4 with 8 micro-batches") {
  auto const plan = mo::make_schedule(mo::zb_h1{}, {.ranks = 4, .microbatches = 8});
  CHECK(formulas::row(plan, 2) ==
        "2F0 2F1 2I0 2F2 2I1 2F3 2I2 2W0 2F4 2I3 2W1 2F5 2I4 2W2 2F6 2I5 2W3 2F7 2I6 2W4 2I7 2W5 2W6 2W7");
}
