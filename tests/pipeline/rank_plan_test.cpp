// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/rank_plan.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::detail::rank_plan;
using mo::detail::receives;

namespace {

struct model {
  std::vector<int> stages;
  int chunks() const { return static_cast<int>(stages.size()); }
  int stage_of(int chunk) const { return stages[static_cast<std::size_t>(chunk)]; }
};

void check(mo::schedule_view const& plan, int rank, std::vector<int> const& stages) {
  rank_plan const mine(plan, rank, plan.ranks(), receives::in_order);
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

TEST_CASE("receives that come late: just before what needs them, those of a channel in their order") {
  mo::pipeline_shape const two{.ranks = 4, .chunks = 2, .microbatches = 8}, one{.ranks = 4, .microbatches = 8};
  for (mo::schedule const& made :
       {mo::make_schedule(mo::zb_v{}, two), mo::make_schedule(mo::dual_pipe{}, two),
        mo::make_schedule(mo::gpipe_lifo{}, one), mo::make_schedule(mo::interleaved_1f1b{}, two),
        mo::make_schedule(mo::one_f_one_b{}, one)}) {
    mo::schedule_view const plan = made;
    for (int r = 0; r < plan.ranks(); ++r) {
      rank_plan const early(plan, r, plan.ranks(), receives::in_order), late(plan, r, plan.ranks(), receives::late);
      auto const others = [](rank_plan const& of) {
        std::vector<mo::operation> all;
        for (mo::operation const& o : of.operations())
          if (o.kind != mo::message::receive) all.push_back(o);
        return all;
      };
      CHECK(others(late) == others(early));
      CHECK(std::is_permutation(late.operations().begin(), late.operations().end(), early.operations().begin(),
                                early.operations().end()));
      for (std::size_t i = 0; i < late.operations().size(); ++i) {
        mo::operation const& o = late.operations()[i];
        if (o.kind != mo::message::receive) continue;
        // Before a joined step come the messages of both its parts.
        std::size_t next = i + 1;
        while (late.operations()[next].kind == mo::message::receive) ++next;
        CHECK(next - i <= 2);
        auto const needs = [&](std::size_t at) {
          mo::operation const& user = late.operations()[at];
          return user.kind == mo::message::none && user.what.stage == o.what.stage &&
                 user.what.microbatch == o.what.microbatch;
        };
        CHECK((needs(next) || (late.operations()[next + 1].what.joined && needs(next + 1))));
      }
    }
  }
}

TEST_CASE("a message that overtakes in use does not overtake on its channel") {
  using mo::computation;
  constexpr auto f = computation::forward, b = computation::backward;
  mo::schedule const plan("own", {.ranks = 2, .microbatches = 2}, {0, 1}, false,
                          {{{0, 0, f}, {0, 1, f}, {0, 1, b}, {0, 0, b}}, {{1, 1, f}, {1, 1, b}, {1, 0, f}, {1, 0, b}}});
  rank_plan const late(plan, 1, 2, receives::late);
  auto const o = late.operations();
  CHECK(o[0] == mo::operation{{1, 0, f}, mo::message::receive, 0, 0});
  CHECK(o[1] == mo::operation{{1, 1, f}, mo::message::receive, 0, 0});
  CHECK(o[2] == mo::operation{{1, 1, f}});
}

TEST_CASE("a schedule of other ranks, and a model of other stages") {
  auto const plan = mo::make_schedule(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  CHECK_THROWS_WITH_AS(rank_plan(plan, 0, 3, receives::in_order), "a schedule of 2 ranks was given to a pipeline of 3.",
                       mo::config_error);
  rank_plan const mine(plan, 1, 2, receives::in_order);
  std::string const words = "the schedule dual_pipe puts 2 stages on the ranks by mo::placement::bidirectional, ";
  CHECK_THROWS_WITH_AS(mine.check(model{{1}}),
                       (words + "2 of them on this one, but the model has 1 chunks here, or other stages.").c_str(),
                       mo::config_error);
  CHECK_THROWS_AS(mine.check(model{{1, 0}}), mo::config_error);
  struct stack : model {
    int stages() const { return 4; }
    mo::placement placed() const { return mo::placement::loop; }
  };
  CHECK_THROWS_WITH_AS(mine.check(stack{{{0, 2}}}),
                       (words + "but the model is cut into 4, placed by mo::placement::loop: split it into 2, and give "
                                "the stack mo::placement::bidirectional.")
                           .c_str(),
                       mo::config_error);
}

TEST_CASE("the placement that a schedule has") {
  using mo::detail::placement_of;
  mo::pipeline_shape const two{.ranks = 2, .chunks = 2, .microbatches = 4};
  CHECK(placement_of(mo::make_schedule(mo::zb_v{}, two)) == "mo::placement::v");
  CHECK(placement_of(mo::make_schedule(mo::dual_pipe_v{}, two)) == "mo::placement::v");
  CHECK(placement_of(mo::make_schedule(mo::dual_pipe{}, two)) == "mo::placement::bidirectional");
  CHECK(placement_of(mo::make_schedule(mo::interleaved_1f1b{}, two)) == "mo::placement::loop");
  CHECK(placement_of(mo::schedule("own", {.ranks = 2, .microbatches = 1}, {1, 0}, false, {{}, {}})) ==
        "a placement of its own");
}

TEST_CASE("slots: nothing that is held at once shares one, and there are no more than what is held at once") {
  mo::pipeline_shape const two{.ranks = 4, .chunks = 2, .microbatches = 12}, one{.ranks = 4, .microbatches = 12};
  for (mo::schedule const& made : {mo::make_schedule(mo::gpipe{}, one), mo::make_schedule(mo::gpipe_lifo{}, one),
                                   mo::make_schedule(mo::one_f_one_b{}, one), mo::make_schedule(mo::zb_h1{}, one),
                                   mo::make_schedule(mo::zb_v{}, two), mo::make_schedule(mo::dual_pipe{}, two),
                                   mo::make_schedule(mo::interleaved_1f1b{}, two)})
    for (receives const when : {receives::in_order, receives::late}) {
      mo::schedule_view const plan = made;
      INFO(std::string(plan.name()) << (when == receives::late ? " late" : " in order"));
      for (int r = 0; r < plan.ranks(); ++r) {
        rank_plan const mine(plan, r, plan.ranks(), when);
        // From the first forward or message of a stage and micro-batch to its last backward or message.
        std::map<std::pair<int, int>, std::pair<std::size_t, std::size_t>> held;
        auto const touch = [&](int s, int m, std::size_t at) {
          held.try_emplace({s, m}, at, at).first->second.second = at;
        };
        for (std::size_t i = 0; i < mine.operations().size(); ++i) {
          mo::operation const& o = mine.operations()[i];
          touch(o.what.stage, o.what.microbatch, i);
          bool const forwards = o.what.type == mo::computation::forward;
          if (o.kind == mo::message::none && forwards && mine.here(o.what.stage + 1, o.what.microbatch))
            touch(o.what.stage + 1, o.what.microbatch, i);
        }
        int most = 0;
        for (auto const& [of, from] : held) {
          CHECK(mine.slot(of.first, of.second) >= 0);
          CHECK(mine.slot(of.first, of.second) < mine.slots());
          int at_once = 0;
          for (auto const& [other, other_from] : held) {
            bool const meet = from.first <= other_from.second && other_from.first <= from.second;
            if (meet && other != of) CHECK(mine.slot(of.first, of.second) != mine.slot(other.first, other.second));
            at_once += other_from.first <= from.first && from.first <= other_from.second;
          }
          most = std::max(most, at_once);
        }
        CHECK(held.size() ==
              static_cast<std::size_t>(std::count_if(
                  plan.begin(r), plan.end(r), [](mo::action const& a) { return a.type == mo::computation::forward; })));
        CHECK(mine.slots() == most);
        CHECK(mine.slots() >= mo::peak_activations(plan, r));
        if (when == receives::late) CHECK(mine.slots() <= mo::peak_activations(plan, r) + 2);
      }
    }
}
