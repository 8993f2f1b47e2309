// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/looped_bfs.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("looped breadth-first is sound, with the bubble and memory that it states") {
  for (int const chunks : {1, 2, 3}) {
    formulas::sound<mo::looped_bfs>(chunks);
    formulas::for_each_shape<mo::looped_bfs>(chunks, [&](mo::pipeline_shape const& shape) {
      auto const plan = mo::make_schedule(mo::looped_bfs{}, shape);
      CHECK(mo::peak_activations(plan, 0) == shape.microbatches * chunks);
      if (shape.microbatches < shape.ranks) return;  // the next chunk waits for the last rank
      formulas::for_each_costs([&](mo::step_costs const& c) {
        CHECK(mo::bubble(plan, c) == (shape.ranks - 1) * (c.forward + c.of(mo::computation::backward)));
      });
    });
  }
}

TEST_CASE("looped breadth-first of 2 ranks, 2 chunks, 2 micro-batches") {
  auto const plan = mo::make_schedule(mo::looped_bfs{}, {.ranks = 2, .chunks = 2, .microbatches = 2});
  CHECK(formulas::text(plan) == "0F0 0F1 2F0 2F1 2B1 2B0 0B1 0B0\n1F0 1F1 3F0 3F1 3B1 3B0 1B1 1B0");
}
