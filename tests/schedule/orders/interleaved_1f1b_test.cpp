// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/interleaved_1f1b.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

#include <algorithm>

namespace mo = moiety;

TEST_CASE("interleaved 1F1B is sound, with the bubble and memory that it states, for every legal group") {
  for (int const chunks : {2, 3, 4}) formulas::sound<mo::interleaved_1f1b>(chunks);
  for (int p = 1; p <= 8; ++p)
    for (int m = 1; m <= 24; ++m)
      for (int group = 1; group <= m; ++group) {
        int const chunks = 2 + group % 3;
        mo::pipeline_shape const shape{.ranks = p, .chunks = chunks, .microbatches = m, .group = group};
        if (mo::fault_of<mo::interleaved_1f1b>(shape) != mo::shape_fault::none) continue;
        CAPTURE(p);
        CAPTURE(m);
        CAPTURE(group);
        auto const plan = mo::make_schedule(mo::interleaved_1f1b{}, shape);
        CHECK(mo::verify(plan));
        if (m < p) continue;  // legal, with more bubble
        formulas::for_each_costs([&](mo::step_costs const& c) {
          CHECK(mo::bubble(plan, c) == (p - 1) * (c.forward + c.of(mo::computation::backward)));
        });
        CHECK(mo::peak_activations(plan, 0) == std::min(2 * (p - 1) + (chunks - 1) * group + 1, chunks * m));
      }
}

TEST_CASE("groups: the default is the smallest legal one, others are refused with the reason") {
  auto const fault = [](int p, int m, int group) {
    return mo::fault_of<mo::interleaved_1f1b>({.ranks = p, .chunks = 2, .microbatches = m, .group = group});
  };
  CHECK(fault(4, 8, 4) == mo::shape_fault::none);
  CHECK(fault(4, 8, 1) == mo::shape_fault::group_below_ranks);
  CHECK(fault(4, 8, 9) == mo::shape_fault::group_above_microbatches);
  CHECK(fault(4, 9, 4) == mo::shape_fault::short_last_group);
  CHECK(fault(4, 10, 5) == mo::shape_fault::none);
  CHECK(fault(4, 3, 3) == mo::shape_fault::none);
  CHECK(mo::fault_of<mo::interleaved_1f1b>({.ranks = 4, .microbatches = 8}) == mo::shape_fault::fewer_than_two_chunks);
  mo::pipeline_shape const nine{.ranks = 4, .chunks = 2, .microbatches = 9};
  mo::pipeline_shape const grouped{
      .ranks = 4, .chunks = 2, .microbatches = 9, .group = 5};  // 4 + 5: both legal, 4 + 4 + 1 not
  CHECK(mo::same_actions(mo::make_schedule(mo::interleaved_1f1b{}, nine),
                         mo::make_schedule(mo::interleaved_1f1b{}, grouped)));
}
