// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/analysis.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <array>
#include <vector>

namespace mo = moiety;

TEST_CASE("the two conventions of a bubble differ where ranks end early") {
  auto const plan = mo::make_schedule(mo::zb_h2{}, {.ranks = 4, .microbatches = 8});
  CHECK(mo::makespan(plan, mo::unit_costs) == 27);
  CHECK(mo::bubble(plan, mo::unit_costs) == 3);
  CHECK(mo::rank_span_bubble(plan, mo::unit_costs) == 0);
  CHECK(mo::idle_fraction(plan, mo::unit_costs) == doctest::Approx(3.0 / 27));
}

TEST_CASE("hops cost what the order makes of them") {
  mo::pipeline_shape const shape{.ranks = 4, .microbatches = 8};
  mo::step_costs const slow{.hop = 1};
  CHECK(mo::makespan(mo::make_schedule(mo::one_f_one_b{}, shape), slow) == 49);
  CHECK(mo::makespan(mo::make_schedule(mo::gpipe{}, shape), slow) == 39);
}

TEST_CASE("with unequal stages the bubble is counted from the busiest rank") {
  auto const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 3});
  std::array<mo::step_costs, 2> const each{mo::step_costs{.forward = 1, .backward = 2},
                                           mo::step_costs{.forward = 5, .backward = 7}};
  mo::stage_costs const costs{each};
  CHECK(mo::makespan(plan, costs) == 39);
  CHECK(mo::bubble(plan, costs) == 39 - 36);
  CHECK(mo::rank_span_bubble(plan, costs) == 39 - 9);
  CHECK(mo::idle_fraction(plan, costs) == doctest::Approx(1 - 45.0 / 78));
}

TEST_CASE("activations are held until the weight gradient, or only until the input gradient") {
  auto const plan = mo::make_schedule(mo::zb_h1{}, {.ranks = 4, .microbatches = 8});
  CHECK(mo::peak_activations(plan, 3) == 4);
  CHECK(mo::peak_activations(plan, 3, mo::release::after_input_gradient) == 1);
  auto const bytes = [](int stage) { return std::int64_t{stage == 0 ? 1000 : 10}; };
  CHECK(mo::peak_activations(plan, 0, bytes) == 4000);
  CHECK(mo::peak_activations(plan, 1, bytes) == 40);
}

TEST_CASE("a joined step holds both micro-batches") {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, {.ranks = 1, .microbatches = 4});
  CHECK(mo::peak_activations(plan, 0) == 2);
}

TEST_CASE("unsound schedules and negative costs have no times") {
  mo::schedule const open("own", {.microbatches = 1}, {0}, false, {{{0, 0, mo::computation::forward}}});
  CHECK_THROWS_WITH_AS(mo::makespan(open, mo::unit_costs),
                       "an unsound schedule has no times: verify() says what is wrong.", mo::schedule_error);
  CHECK_THROWS_AS(mo::start_times(open, mo::unit_costs), mo::schedule_error);
  auto const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 3});
  CHECK_THROWS_AS(mo::makespan(plan, mo::step_costs{.forward = -1}), mo::schedule_error);
  CHECK_THROWS_AS(mo::bubble(plan, mo::step_costs{.backward = -2}), mo::schedule_error);
  CHECK_THROWS_AS(mo::rank_span_bubble(plan, mo::step_costs{.hop = -1}), mo::schedule_error);
  CHECK(mo::makespan(plan, mo::step_costs{.forward = 0, .backward = 0}) == 0);
  CHECK(mo::idle_fraction(plan, mo::step_costs{.forward = 0, .backward = 0}) == 0);
}

TEST_CASE("start times stand at the actions' indices") {
  auto const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 2});
  CHECK(mo::start_times(plan, mo::unit_costs) == std::vector<std::int64_t>{0, 1, 5, 7, 1, 2, 3, 5});
}
