// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/rank_plan.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

namespace mo = moiety;
using mo::detail::rank_plan;

namespace {

struct model {
  std::vector<int> stages;
  int chunks() const { return static_cast<int>(stages.size()); }
  int stage_of(int chunk) const { return stages[static_cast<std::size_t>(chunk)]; }
};

void check(mo::schedule_view const& plan, int rank, std::vector<int> const& stages) {
  rank_plan const mine(plan, rank, plan.ranks());
  CHECK(mine.stages() == plan.stages());
  CHECK(mine.microbatches() == plan.microbatches());
  CHECK(mine.chunks() == static_cast<int>(stages.size()));
  for (int s = 0; s < plan.stages(); ++s) {
    auto const found = std::find(stages.begin(), stages.end(), s);
    CHECK(mine.chunk(s) == (found == stages.end() ? -1 : static_cast<int>(found - stages.begin())));
    for (int m = 0; m < plan.microbatches(); ++m) {
      CHECK(mine.home(s, m) == plan.rank_of(s, m));
      CHECK(mine.here(s, m) == (plan.rank_of(s, m) == rank));
    }
  }
  CHECK(!mine.here(-1, 0));
  CHECK(!mine.here(plan.stages(), 0));
  mine.check(model{stages});
  auto const lowered = mo::lower(plan);
  CHECK(std::equal(mine.operations().begin(), mine.operations().end(), lowered.rank(rank).begin(),
                   lowered.rank(rank).end()));
}

}  // namespace

TEST_CASE("chunks are the stages of a rank, ascending, both of a bidirectional schedule") {
  auto const v = mo::make_schedule(mo::zb_v{}, {.ranks = 3, .chunks = 2, .microbatches = 6});
  for (int r = 0; r < 3; ++r) check(v, r, {r, 5 - r});
  auto const loop = mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 2, .chunks = 3, .microbatches = 4});
  for (int r = 0; r < 2; ++r) check(loop, r, {r, 2 + r, 4 + r});
  auto const both = mo::make_schedule(mo::dual_pipe{}, {.ranks = 4, .chunks = 2, .microbatches = 8});
  for (int r = 0; r < 4; ++r) check(both, r, {std::min(r, 3 - r), std::max(r, 3 - r)});
}

TEST_CASE("a schedule of other ranks, and a model of other stages") {
  auto const plan = mo::make_schedule(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  CHECK_THROWS_WITH_AS(rank_plan(plan, 0, 3), "a schedule of 2 ranks was given to a pipeline of 3.", mo::config_error);
  rank_plan const mine(plan, 1, 2);
  CHECK_THROWS_WITH_AS(mine.check(model{{1}}),
                       "the schedule has 2 stages on this rank, but the model has 1 chunks here.", mo::config_error);
  CHECK_THROWS_WITH_AS(mine.check(model{{1, 0}}),
                       "stage 0 of the schedule is on this rank, but the model has placed another one there.",
                       mo::config_error);
}
