// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/gpipe.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE_TEMPLATE("gpipe is sound, with the bubble and memory that it states", Order, mo::gpipe, mo::gpipe_lifo) {
  formulas::sound<Order>(1);
  formulas::for_each_shape<Order>(1, [](mo::pipeline_shape const& shape) {
    auto const plan = mo::make_schedule(Order{}, shape);
    formulas::for_each_costs([&](mo::step_costs const& c) {
      CHECK(mo::bubble(plan, c) == (shape.ranks - 1) * (c.forward + c.of(mo::computation::backward)));
    });
    for (int r = 0; r < shape.ranks; ++r) CHECK(mo::peak_activations(plan, r) == shape.microbatches);
  });
}

TEST_CASE("gpipe runs backwards in the order of the forwards, gpipe_lifo in reverse") {
  mo::pipeline_shape const shape{.ranks = 2, .microbatches = 3};
  CHECK(formulas::text(mo::make_schedule(mo::gpipe{}, shape)) == "0F0 0F1 0F2 0B0 0B1 0B2\n1F0 1F1 1F2 1B0 1B1 1B2");
  CHECK(formulas::row(mo::make_schedule(mo::gpipe_lifo{}, shape), 1) == "1F0 1F1 1F2 1B2 1B1 1B0");
}
