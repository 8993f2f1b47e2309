// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/zb_h.hpp>

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
    CHECK(mo::bubble(plan, mo::unit_costs) == shape.ranks - 1);
    for (int r = 0; r < shape.ranks; ++r) CHECK(mo::peak_activations(plan, r) == 2 * shape.ranks - 1);
  });
}

TEST_CASE("ZB-H1 and ZB-H2 of 4 ranks and 8 micro-batches") {
  mo::pipeline_shape const shape{.ranks = 4, .microbatches = 8};
  CHECK(formulas::row(mo::make_schedule(mo::zb_h1{}, shape), 2) ==
        "2F0 2F1 2I0 2F2 2I1 2F3 2I2 2W0 2F4 2I3 2W1 2F5 2I4 2W2 2F6 2I5 2W3 2F7 2I6 2W4 2I7 2W5 2W6 2W7");
  CHECK(formulas::row(mo::make_schedule(mo::zb_h2{}, shape), 3) ==
        "3F0 3I0 3F1 3I1 3F2 3I2 3F3 3I3 3F4 3I4 3F5 3I5 3F6 3I6 3W0 3F7 3I7 3W1 3W2 3W3 3W4 3W5 3W6 3W7");
}
