// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/orders/interleaved_1f1b.hpp>

#include <schedule/orders/formulas.hpp>

#include <doctest/doctest.h>

#include <algorithm>

namespace mo = moiety;

TEST_CASE("interleaved 1F1B is sound, with the bubble and memory that it states, for every legal group") {
  for (int const chunks : {2, 3, 4}) formulas::sound<mo::interleaved_1f1b>(chunks);
  for (int p = 1; p <= 6; ++p)
    for (int m = 1; m <= 24; ++m)
      for (int group = 1; group <= m; ++group) {
        mo::pipeline_shape const shape{.ranks = p, .chunks = 3, .microbatches = m, .group = group};
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
        CHECK(mo::peak_activations(plan, 0) == std::min(2 * (p - 1) + 2 * group + 1, 3 * m));
      }
}

TEST_CASE("the overlapped form is sound, holds one chunk more, and hides what a joined step saves") {
  for (int const chunks : {2, 3}) formulas::sound<mo::interleaved_1f1b_overlapped>(chunks);
  mo::pipeline_shape const shape{.ranks = 4, .chunks = 2, .microbatches = 8};
  auto const plain = mo::make_schedule(mo::interleaved_1f1b{}, shape);
  auto const overlapped = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, shape);
  for (int r = 0; r < 4; ++r) CHECK(mo::peak_activations(overlapped, r) == mo::peak_activations(plain, r) + 1);
  CHECK(mo::makespan(overlapped, mo::unit_costs) == mo::makespan(plain, mo::unit_costs));
  CHECK(mo::makespan(overlapped, mo::step_costs{.hidden = 1}) == 46);
  CHECK(mo::makespan(plain, mo::step_costs{.hidden = 1}) == 57);
}

TEST_CASE("one rank overlaps a forward with the backward before it") {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, {.ranks = 1, .microbatches = 3});
  CHECK(formulas::text(plan) == "0F0 (0F1;0B0)OVERLAP_F_B (0F2;0B1)OVERLAP_F_B 0B2");
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
