// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/verify.hpp>

#include "instrumented.hpp"

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <ctime>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;
using mo::computation;
using mo::flaw;

namespace {

using lists = std::vector<std::vector<mo::action>>;

lists lists_of(mo::schedule_view const& plan) {
  lists all;
  for (int r = 0; r < plan.ranks(); ++r) all.emplace_back(plan.rank(r).begin(), plan.rank(r).end());
  return all;
}

mo::schedule loop_of(lists const& ranks, int microbatches, int chunks = 1) {
  std::vector<int> home;
  int const p = static_cast<int>(ranks.size());
  for (int s = 0; s < p * chunks; ++s) home.push_back(s % p);
  return {"own", {.ranks = p, .chunks = chunks, .microbatches = microbatches}, home, false, ranks};
}

/// 1F1B of 4 ranks and 8 micro-batches.
lists correct() {
  return lists_of(mo::schedule_for<mo::one_f_one_b, mo::pipeline_shape{.ranks = 4, .microbatches = 8}>);
}

std::string stands_at(mo::schedule_view const& plan) {
  std::ostringstream out;
  for (mo::blocked_rank const& b : mo::blocked(plan)) out << (out.tellp() > 0 ? " | " : "") << *b.at;
  return out.str();
}

/// Interleaved 1F1B that takes any group.
struct any_group : mo::interleaved_1f1b {
  static constexpr mo::shape_fault fault(mo::pipeline_shape const&) { return mo::shape_fault::none; }
};

/// Overlapped steps without the additional forward of the warm-up.
struct too_early {
  static constexpr std::string_view name = "too_early";
  static constexpr auto placed = mo::placement::loop;
  static constexpr auto gradients = mo::gradient_order::ascending;
  static constexpr mo::shape_fault fault(mo::pipeline_shape const&) { return mo::shape_fault::none; }
  static constexpr void generate(mo::pipeline_shape const& shape, int rank, mo::rank_actions& actions) {
    mo::detail::interleaving ahead(shape, rank, false), back(shape, rank, true);
    int const all = shape.chunks * shape.microbatches, warm_up = mo::detail::interleaved_warm_up(shape, rank, 0);
    for (int k = 0; k < warm_up; ++k) ahead.forward(actions);
    for (int k = warm_up; k < all; ++k) {
      actions.overlap(ahead.stage(), ahead.microbatch(), back.stage(), back.microbatch());
      ahead.advance();
      back.advance();
    }
    for (int k = 0; k < warm_up; ++k) back.backward(actions);
  }
};

void check(mo::schedule_view const& plan, flaw what, int rank, std::int64_t position, mo::action const& where) {
  mo::verdict const v = mo::verify(plan);
  CHECK_FALSE(v);
  CHECK(v.what == what);
  CHECK(v.rank == rank);
  CHECK(v.position == position);
  CHECK(v.where == where);
}

}  // namespace

TEST_CASE("groups below the number of ranks, or with a short last group, wait for ever") {
  struct {
    mo::pipeline_shape shape;
    char const* stands;
  } const cases[] = {
      {{.ranks = 4, .chunks = 2, .microbatches = 8, .group = 1}, "4F2 | 5F2 | 2B0 | 3B0"},
      {{.ranks = 4, .chunks = 2, .microbatches = 8, .group = 2}, "4F3 | 5F3 | 2B0 | 3B0"},
      {{.ranks = 4, .chunks = 2, .microbatches = 8, .group = 3}, "4F7 | 5F7 | 2B3 | 3B3"},
      {{.ranks = 4, .chunks = 3, .microbatches = 5, .group = 4}, "8F4 | 9F4 | 10F4 | 7B0"},
      {{.ranks = 4, .chunks = 3, .microbatches = 9, .group = 4}, "8F8 | 9F8 | 10F8 | 7B4"},
      {{.ranks = 5, .chunks = 2, .microbatches = 7, .group = 5}, "5F6 | 6F6 | 7F6 | 3B0 | 4B0"},
  };
  for (auto const& c : cases) {
    auto const plan = mo::make_schedule(any_group{}, c.shape);
    CHECK(mo::verify(plan).what == flaw::deadlock);
    CHECK(stands_at(plan) == c.stands);
    CHECK(mo::fault_of<mo::interleaved_1f1b>(c.shape) != mo::shape_fault::none);
  }
}

TEST_CASE("groups that end are legal, with the standard bubble only where the last group is long enough") {
  struct {
    int microbatches, group;
    std::int64_t makespan, standard;
  } const cases[] = {{8, 5, 59, 57},  {9, 4, 74, 63},  {10, 4, 79, 69},
                     {11, 4, 77, 75}, {10, 5, 69, 69}, {12, 6, 81, 81}};
  for (auto const& c : cases) {
    mo::pipeline_shape const shape{.ranks = 4, .chunks = 2, .microbatches = c.microbatches, .group = c.group};
    auto const plan = mo::make_schedule(any_group{}, shape);
    CHECK(mo::verify(plan));
    CHECK(mo::makespan(plan, mo::unit_costs) == c.makespan);
    CHECK((mo::fault_of<mo::interleaved_1f1b>(shape) == mo::shape_fault::none) == (c.makespan == c.standard));
  }
}

TEST_CASE("a pair whose backward needs its own forward is refused") {
  for (int const chunks : {1, 2}) {
    auto const plan = mo::make_schedule(too_early{}, {.ranks = 4, .chunks = chunks, .microbatches = 8});
    CHECK(mo::verify(plan).what == flaw::before_forward);
  }
}

TEST_CASE("one wrong action is named with its rank and position") {
  auto missing = correct();
  missing[1].pop_back();
  check(loop_of(missing, 8), flaw::missing, 1, 15, {1, 7, computation::backward});

  auto repeated = correct();
  repeated[2].insert(repeated[2].begin() + 3, {2, 0, computation::forward});
  check(loop_of(repeated, 8), flaw::repeated, 2, 3, {2, 0, computation::forward});

  auto early = correct();
  std::swap(early[3][0], early[3][1]);
  check(loop_of(early, 8), flaw::before_forward, 3, 0, {3, 0, computation::backward});

  auto moved = correct();
  moved[1].push_back(moved[0][5]);
  moved[0].erase(moved[0].begin() + 5);
  check(loop_of(moved, 8), flaw::wrong_rank, 1, 16, moved[1].back());

  auto ahead = lists_of(mo::schedule_for<mo::one_f_one_b, mo::pipeline_shape{.ranks = 2, .microbatches = 4}>);
  ahead[0] = {{0, 0, computation::forward},  {0, 1, computation::backward}, {0, 1, computation::forward},
              {0, 0, computation::backward}, {0, 2, computation::forward},  {0, 2, computation::backward},
              {0, 3, computation::forward},  {0, 3, computation::backward}};
  check(loop_of(ahead, 4), flaw::before_forward, 0, 1, {0, 1, computation::backward});

  auto crossed = correct();  // 2F1 and 2B1: the backward of another micro-batch than the next stage's
  std::swap(*std::find(crossed[2].begin(), crossed[2].end(), mo::action{2, 1, computation::forward}),
            *std::find(crossed[2].begin(), crossed[2].end(), mo::action{2, 1, computation::backward}));
  check(loop_of(crossed, 8), flaw::before_forward, 2, 1, {2, 1, computation::backward});

  // everything could run, so only the place is wrong
  auto const elsewhere =
      lists{{{0, 0, computation::backward}},
            {{0, 0, computation::forward}, {1, 0, computation::forward}, {1, 0, computation::backward}}};
  check(loop_of(elsewhere, 1), flaw::wrong_rank, 1, 0, {0, 0, computation::forward});

  auto outside = correct();
  outside[0][0].microbatch = 8;
  check(loop_of(outside, 8), flaw::outside, 0, 0, {0, 8, computation::forward});
  outside[0][0] = {4, 0, computation::forward};
  check(loop_of(outside, 8), flaw::outside, 0, 0, {4, 0, computation::forward});
  outside[0][0] = {0, -1, computation::forward};
  check(loop_of(outside, 8), flaw::outside, 0, 0, {0, -1, computation::forward});

  auto weight =
      lists{{{0, 0, computation::forward}, {0, 0, computation::weight_gradient}, {0, 0, computation::input_gradient}}};
  check(loop_of(weight, 1), flaw::before_input, 0, 1, {0, 0, computation::weight_gradient});

  auto both =
      lists{{{0, 0, computation::forward}, {0, 0, computation::backward}, {0, 0, computation::weight_gradient}}};
  check(loop_of(both, 1), flaw::repeated, 0, 2, {0, 0, computation::weight_gradient});

  auto half = lists{{{0, 0, computation::forward}, {0, 0, computation::input_gradient}}};
  check(loop_of(half, 1), flaw::missing, 0, 2, {0, 0, computation::weight_gradient});
}

TEST_CASE("only a forward and a full backward can be joined") {
  auto pairs = lists{{{0, 0, computation::forward},
                      {0, 1, computation::forward},
                      {0, 0, computation::backward, true},
                      {0, 1, computation::backward}}};
  CHECK(mo::verify(loop_of(pairs, 2)));
  pairs[0][3].joined = true;
  check(loop_of(pairs, 2), flaw::wrong_pair, 0, 3, pairs[0][3]);
  pairs[0][3].joined = false;
  pairs[0][0].joined = true;
  check(loop_of(pairs, 2), flaw::wrong_pair, 0, 0, pairs[0][0]);
}

TEST_CASE("lists that are legal on every rank can still wait in a circle") {
  lists const crossed{{{0, 0, computation::forward},
                       {0, 1, computation::forward},
                       {0, 0, computation::backward},
                       {0, 1, computation::backward}},
                      {{1, 1, computation::forward},
                       {1, 1, computation::backward},
                       {1, 0, computation::forward},
                       {1, 0, computation::backward}}};
  CHECK(mo::verify(loop_of(crossed, 2)));  // 1B1 ends before 0B1 needs it

  lists const circle{{{0, 0, computation::forward},
                      {0, 0, computation::backward},
                      {0, 1, computation::forward},
                      {0, 1, computation::backward}},
                     {{1, 1, computation::forward},
                      {1, 1, computation::backward},
                      {1, 0, computation::forward},
                      {1, 0, computation::backward}}};
  auto const plan = loop_of(circle, 2);
  CHECK(stands_at(plan) == "0B0 | 1F1");
  auto const cycle = mo::wait_cycle(plan);
  REQUIRE(cycle.size() == 2);
  CHECK(cycle[0].rank != cycle[1].rank);
  std::ostringstream out;
  out << mo::verify(plan);
  CHECK(out.str() ==
        "own: 0B0 on rank 0, position 1, waits for ever.\n"
        "  rank 0 stands at 0B0 and waits for 1B0\n"
        "  rank 1 stands at 1F1 and waits for 0F1\n"
        "0: 0F0 >0B0< 0F1 0B1\n"
        "1: >1F1< 1B1 1F0 1B0");
}

TEST_CASE("1F1B with a forward and a backward of one rank exchanged, or a backward moved to the front") {
  auto swapped = correct();  // 0F3 and 0B0
  std::swap(swapped[0][3], swapped[0][4]);
  CHECK(mo::verify(loop_of(swapped, 8)));
  auto front = correct();
  std::rotate(front[0].begin() + 1, front[0].begin() + 4, front[0].begin() + 5);
  auto const plan = loop_of(front, 8);
  CHECK(stands_at(plan) == "0B0 | 1F1 | 2F1 | 3F1");
  check(plan, flaw::deadlock, 0, 1, {0, 0, computation::backward});
}

TEST_CASE("a verdict prints a sentence, and marks the place in the grid") {
  std::ostringstream good, bad;
  good << mo::verify(mo::schedule_for<mo::gpipe, mo::pipeline_shape{.ranks = 2, .microbatches = 2}>);
  CHECK(good.str() == "gpipe: the schedule is complete, ordered and free of deadlock.");
  auto const plan = loop_of({{{0, 0, computation::backward}, {0, 0, computation::forward}}}, 1);
  bad << mo::verify(plan);
  CHECK(bad.str() == "own: 0B0 on rank 0, position 0, comes before its own forward has ended.\n0: >0B0< 0F0");
}

TEST_CASE("64 ranks and 512 micro-batches are verified and timed in moments") {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 64, .chunks = 4, .microbatches = 512});
  double best = 1;
  for (int round = 0; round < 5; ++round) {
    std::clock_t const start = std::clock();
    CHECK(mo::verify(plan));
    CHECK(mo::makespan(plan, mo::unit_costs) == 3 * (4 * 512 + 63));
    best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  if (!instrumented) CHECK(best < 0.05);
}
