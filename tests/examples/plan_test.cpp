// SPDX-License-Identifier: Apache-2.0
#include <plan/planner.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace mo = moiety;

namespace {

plan::question ask(int ranks, double gigabytes, int microbatches) {
  plan::machine const on{400e12, 50e9, static_cast<std::int64_t>(gigabytes * 1e9), 16};
  return {plan::models[1], on, ranks, microbatches, 4096, 4096};
}

}  // namespace

TEST_CASE("plans are sound, fit the memory, use every rank and every block, and come best first") {
  plan::question const q = ask(8, 80, 16);
  plan::answer const all = plan::make_plans(q);
  REQUIRE(all.proposals.size() > 20);
  std::int64_t last = 0;
  std::set<std::tuple<std::string, int, int, int>> seen;
  for (plan::proposal const& p : all.proposals) {
    mo::schedule_view const schedule = p.schedule;
    CHECK(mo::verify(schedule));
    CHECK(p.ranks.data * p.ranks.pipeline == 8);
    CHECK(schedule.ranks() == p.ranks.pipeline);
    CHECK(schedule.microbatches() * p.ranks.data == 16);
    CHECK(p.ranks.data % p.ranks.expert == 0);
    CHECK(p.memory <= q.on.memory);
    CHECK(p.split.blocks() == q.what.layers + 2);
    CHECK(p.split.stages() == schedule.stages());
    for (int s = 0; s < p.split.stages(); ++s) CHECK(p.split.count(s) > 0);
    CHECK(p.makespan == mo::makespan(schedule, p.costs()));
    CHECK(p.bubble == mo::bubble(schedule, p.costs()));
    CHECK(p.step() >= last);
    last = p.step();
    CHECK(
        seen.insert({std::string(schedule.name()), p.ranks.pipeline, p.ranks.expert, schedule.shape().chunks}).second);
  }
}

TEST_CASE("less memory leaves fewer plans, then none, and says why") {
  std::size_t before = 1000000;
  for (double const gigabytes : {200.0, 60.0, 30.0, 20.0, 5.0}) {
    plan::answer const all = plan::make_plans(ask(8, gigabytes, 16));
    CHECK(all.proposals.size() <= before);
    before = all.proposals.size();
    if (gigabytes < 60) CHECK(all.impossible.at("a rank's memory is too small") > 0);
  }
  CHECK(before == 0);
}

TEST_CASE("where memory is short, 1F1B gives up balance before it gives up") {
  auto const split_with = [](double gigabytes) {
    for (plan::proposal const& p : plan::make_plans(ask(4, gigabytes, 16)).proposals)
      if (mo::schedule_view(p.schedule).name() == "one_f_one_b" && p.ranks.pipeline == 4) return p.split;
    return mo::split_by_counts(std::vector{0}, 0);
  };
  auto const balanced = split_with(1000);
  REQUIRE(balanced.blocks() == 18);
  bool moved = false, refused = false;
  for (double gigabytes = 60; gigabytes > 10; gigabytes -= 0.25) {
    auto const split = split_with(gigabytes);
    moved = moved || (split.blocks() > 0 && split != balanced);
    refused = refused || split.blocks() == 0;
  }
  CHECK(moved);
  CHECK(refused);
}

TEST_CASE("one rank works without a pipeline, and odd sizes find what there is") {
  plan::answer const alone = plan::make_plans(ask(1, 500, 7));
  REQUIRE(!alone.proposals.empty());
  CHECK(alone.proposals.front().hop > 0);
  CHECK(alone.proposals.front().idle == 0);
  CHECK(alone.proposals.front().reduction == 0);
  plan::answer const seven = plan::make_plans(ask(7, 200, 5));  // neither replicas nor rounds come out even
  CHECK(seven.impossible.count("the micro-batches do not divide among the replicas") == 1);
}

TEST_CASE("expert parallelism divides expert memory and costs exchange") {
  auto const& m = plan::models[1];
  plan::machine const on{400e12, 50e9, 80'000'000'000, 16};
  auto const one = plan::loads_of(m, on, 4096, 4096, 1), four = plan::loads_of(m, on, 4096, 4096, 4);
  CHECK(one.size() == static_cast<std::size_t>(m.layers) + 2);
  CHECK(one[1].exchange == 0);
  CHECK(four[1].exchange > 0);
  CHECK(four[1].time.forward == one[1].time.forward + four[1].exchange);
  CHECK(four[1].expert_parameters * 4 == one[1].expert_parameters);
  CHECK(four[1].dense_parameters == one[1].dense_parameters);
  CHECK(one[1].dense_parameters + one[1].expert_parameters == m.attention.cost().parameters + m.moe.cost().parameters);
  CHECK(one[0].time.forward == 0);
  CHECK(one.back().time.forward > 0);
}
