// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/one_f_one_b.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

#include <algorithm>

namespace mo = moiety;

TEST_CASE("1F1B is sound, with the bubble and memory that it states") {
  formulas::sound<mo::one_f_one_b>(1);
  formulas::for_each_shape<mo::one_f_one_b>(1, [](mo::pipeline_shape const& shape) {
    auto const plan = mo::make_schedule(mo::one_f_one_b{}, shape);
    formulas::for_each_costs([&](mo::step_costs const& c) {
      CHECK(mo::bubble(plan, c) == (shape.ranks - 1) * (c.forward + c.of(mo::computation::backward)));
    });
    for (int r = 0; r < shape.ranks; ++r)
      CHECK(mo::peak_activations(plan, r) == std::min(shape.ranks - r, shape.microbatches));
  });
}

TEST_CASE("1F1B of 4 ranks and 8 micro-batches, and with fewer micro-batches than ranks") {
  auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 4, .microbatches = 8});
  CHECK(formulas::row(plan, 1) == "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1F6 1B4 1F7 1B5 1B6 1B7");
  auto const few = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 4, .microbatches = 2});
  CHECK(formulas::row(few, 0) == "0F0 0F1 0B0 0B1");
  CHECK(formulas::row(few, 3) == "3F0 3B0 3F1 3B1");
}
