// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/replay.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <vector>

namespace mo = moiety;
using mo::computation;

namespace {

mo::schedule two_ranks(std::vector<mo::action> const& zero, std::vector<mo::action> const& one, int microbatches) {
  return {"own", {.microbatches = microbatches}, {0, 1}, false, {zero, one}};
}

}  // namespace

TEST_CASE("times follow from inputs, hops and the rank's own order") {
  auto const plan = two_ranks(
      {{0, 0, computation::forward}, {0, 0, computation::input_gradient}, {0, 0, computation::weight_gradient}},
      {{1, 0, computation::forward}, {1, 0, computation::backward}}, 1);
  mo::step_costs const costs{.forward = 2, .input_gradient = 3, .weight_gradient = 4, .hop = 10};
  std::vector<std::int64_t> starts(5, -1);
  mo::replay const run(plan, costs, starts.data());
  CHECK(run.complete());
  // 0F0 [0, 2), one hop, 1F0 [12, 14), 1B0 [14, 21), one hop, 0I0 [31, 34), 0W0 [34, 38)
  CHECK(starts == std::vector<std::int64_t>{0, 31, 34, 12, 14});
  CHECK(run.makespan() == 38);
  CHECK(run.begin(1) == 12);
  CHECK(run.end(1) == 21);
  CHECK(run.work(0) == 9);
}

TEST_CASE("costs of each stage count where they are") {
  auto const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 3});
  std::vector<mo::step_costs> const each{{.forward = 1, .backward = 2}, {.forward = 5, .backward = 7}};
  // the second stage is never idle once it began: 1 + 3·5 + 3·7 + 2
  CHECK(mo::replay(plan, mo::stage_costs{each}).makespan() == 39);
}

TEST_CASE("a joined step starts when both inputs are there and gives both results at its end") {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, {.ranks = 1, .microbatches = 3});
  CHECK(mo::replay(plan, mo::unit_costs).makespan() == 9);
  CHECK(mo::replay(plan, mo::step_costs{.hidden = 1}).makespan() == 7);
}

TEST_CASE("a joined step waits for the later of its inputs") {
  auto const plan = two_ranks({{0, 0, computation::forward},
                               {0, 1, computation::forward},
                               {0, 0, computation::backward, true},
                               {0, 1, computation::backward}},
                              {{1, 0, computation::forward},
                               {1, 0, computation::backward},
                               {1, 1, computation::forward},
                               {1, 1, computation::backward}},
                              2);
  std::vector<std::int64_t> starts(8, -1);
  CHECK(mo::replay(plan, mo::unit_costs, starts.data()).complete());
  // 0F0 [0, 1), 1F0 [1, 2), 1B0 [2, 4), (0F1;0B0) [4, 7), 1F1 [7, 8), 1B1 [8, 10), 0B1 [10, 12)
  CHECK(starts == std::vector<std::int64_t>{0, 4, 4, 10, 1, 2, 7, 8});
}

TEST_CASE("a replay stops at what cannot run") {
  auto const reversed = two_ranks({{0, 0, computation::backward}, {0, 0, computation::forward}},
                                  {{1, 0, computation::forward}, {1, 0, computation::backward}}, 1);
  mo::replay const run(reversed, mo::unit_costs);
  CHECK_FALSE(run.complete());
  CHECK(run.next(0) == mo::schedule_view(reversed).begin(0));
  CHECK(run.next(1) == mo::schedule_view(reversed).begin(1));
  auto const missing = two_ranks({{0, 0, computation::forward}, {0, 0, computation::backward}},
                                 {{1, 0, computation::forward}, {1, 0, computation::input_gradient}}, 1);
  mo::replay const half(missing, mo::unit_costs);
  CHECK(half.next(1) == mo::schedule_view(missing).end(1));
  CHECK_FALSE(half.complete());
}
