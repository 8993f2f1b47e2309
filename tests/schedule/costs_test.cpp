// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/costs.hpp>

#include <doctest/doctest.h>

#include <array>

namespace mo = moiety;

TEST_CASE("a full backward takes as long as its halves, unless it is given") {
  mo::step_costs const c{.forward = 2, .input_gradient = 3, .weight_gradient = 5};
  CHECK(c.of(mo::computation::forward) == 2);
  CHECK(c.of(mo::computation::input_gradient) == 3);
  CHECK(c.of(mo::computation::weight_gradient) == 5);
  CHECK(c.of(mo::computation::backward) == 8);
  CHECK(mo::step_costs{.backward = 7}.of(mo::computation::backward) == 7);
  CHECK(mo::step_costs{.backward = 0}.of(mo::computation::backward) == 0);
  static_assert(mo::unit_costs.of(mo::computation::backward) == 2);
}

TEST_CASE("a joined step saves what both of its stages can hide, and never more than its time") {
  std::array<mo::step_costs, 2> const each{mo::step_costs{.forward = 4, .hidden = 3},
                                           mo::step_costs{.forward = 9, .input_gradient = 5, .hidden = 1}};
  mo::stage_costs const costs{each, 2};
  static_assert(mo::cost_model<mo::stage_costs> && mo::cost_model<mo::step_costs>);
  mo::action const forward{0, 1, mo::computation::forward}, backward{1, 0, mo::computation::backward, true};
  CHECK(mo::detail::joined_duration(costs, forward, backward) == 4 + 6 - 1);
  CHECK(mo::detail::joined_duration(mo::step_costs{.hidden = 10}, forward, backward) == 0);
  CHECK(costs.of_stage(1).forward == 9);
}
