// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/interleaved_zb1p.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("interleaved ZB1P is sound, with the bubble and memory that it states") {
  for (int const chunks : {2, 3}) {
    formulas::sound<mo::interleaved_zb1p>(chunks);
    formulas::for_each_shape<mo::interleaved_zb1p>(chunks, [&](mo::pipeline_shape const& shape) {
      int const p = shape.ranks, m = shape.microbatches;
      if (m < p) return;
      auto const plan = mo::make_schedule(mo::interleaved_zb1p{}, shape);
      CHECK(mo::bubble(plan, mo::unit_costs) == p - 1);
      int const group = m / (m / p);
      for (int r = 0; r < p; ++r) CHECK(mo::peak_activations(plan, r) == (chunks - 1) * group + p);
    });
  }
}

TEST_CASE("interleaved ZB1P refuses uneven rounds and groups") {
  CHECK(mo::fault_of<mo::interleaved_zb1p>({.ranks = 4, .chunks = 2, .microbatches = 9}) ==
        mo::shape_fault::uneven_rounds);
  CHECK(mo::fault_of<mo::interleaved_zb1p>({.ranks = 4, .chunks = 2, .microbatches = 8, .group = 4}) ==
        mo::shape_fault::group_unused);
  auto const plan = mo::make_schedule(mo::interleaved_zb1p{}, {.ranks = 2, .chunks = 2, .microbatches = 2});
  CHECK(formulas::text(plan) ==
        "0F0 0F1 2F0 2F1 2I0 2W0 2I1 2W1 0I0 0W0 0I1 0W1\n1F0 1F1 3F0 3I0 3F1 3I1 3W0 1I0 3W1 1I1 1W0 1W1");
}
