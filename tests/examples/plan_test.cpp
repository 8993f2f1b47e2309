// SPDX-License-Identifier: Apache-2.0
#include <plan/measured.hpp>
#include <plan/planner.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ios>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <stdexcept>
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

TEST_CASE("where memory is short, orders give up balance before they give up, with several stages a rank too") {
  using sizes = std::map<std::string, plan::proposal>;
  auto const plans_with = [](double gigabytes) {
    sizes all;
    for (plan::proposal const& p : plan::make_plans(ask(4, gigabytes, 16)).proposals)
      if (p.ranks.pipeline == 4 && mo::schedule_view(p.schedule).shape().chunks < 3)
        all.emplace(mo::schedule_view(p.schedule).name(), p);
    return all;
  };
  sizes const balanced = plans_with(1000);
  REQUIRE(balanced.size() == 11);
  std::set<std::string> moved, refused;
  for (double gigabytes = 60; gigabytes > 10; gigabytes -= 0.5) {
    sizes const capped = plans_with(gigabytes);
    for (auto const& [name, best] : balanced) {
      auto const found = capped.find(name);
      if (found == capped.end()) {
        refused.insert(name);
      } else if (found->second.split != best.split) {
        moved.insert(name);
        CHECK(best.memory > static_cast<std::int64_t>(gigabytes * 1e9));
      }
    }
  }
  CHECK(refused.size() == balanced.size());
  for (char const* name : {"one_f_one_b", "zb_v", "dual_pipe", "dual_pipe_v", "interleaved_1f1b"})
    CHECK_MESSAGE(moved.count(name) == 1, name);
}

TEST_CASE("measured times take the place of derived ones; expert exchange comes on top") {
  auto const& m = plan::models[1];
  plan::machine const on{400e12, 50e9, 80'000'000'000, 16};
  std::stringstream table("# embedding, layers, head\n");
  table.seekp(0, std::ios::end);
  for (std::size_t b = 0; b < plan::blocks_of(m); ++b) table << b << ' ' << 10 * b << "\t" << 100 * b << " \r\n";
  auto const measured = plan::parse_measured(table, "table", plan::blocks_of(m));
  auto const derived = plan::loads_of(m, on, 4096, 4096, 4), taken = plan::loads_of(m, on, 4096, 4096, 4, measured);
  REQUIRE(taken.size() == derived.size());
  for (std::size_t b = 0; b < taken.size(); ++b) {
    auto const number = static_cast<std::int64_t>(b);
    CHECK(taken[b].exchange == derived[b].exchange);
    CHECK(taken[b].time.forward == number + taken[b].exchange);
    CHECK(taken[b].time.input_gradient == 10 * number + taken[b].exchange);
    CHECK(taken[b].time.weight_gradient == 100 * number);
    CHECK(taken[b].weights == derived[b].weights);
    CHECK(taken[b].activations == derived[b].activations);
  }
  plan::question q = ask(4, 200, 16);
  q.measured = measured;
  plan::answer const slow = plan::make_plans(q);
  REQUIRE(!slow.proposals.empty());
  CHECK(slow.proposals.front().split != plan::make_plans(ask(4, 200, 16)).proposals.front().split);
}

TEST_CASE("a malformed table of times is refused by line and reason") {
  auto const refused = [](std::string const& text) {
    std::istringstream in(text);
    try {
      plan::parse_measured(in, "t", 2);
    } catch (std::runtime_error const& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  auto const numbers = [](std::string const& line, std::string const& text) {
    return "t, line " + line + ", needs three whole numbers: forward, input half, weight half; not \"" + text + "\".";
  };
  CHECK(refused("1 2 3\n4 5 6").empty());
  CHECK(refused("1 2 3\n4 5\n") == numbers("2", "4 5"));
  CHECK(refused("1 2 3 4\n") == numbers("1", "1 2 3 4"));
  CHECK(refused("1,2,3\n") == numbers("1", "1,2,3"));
  CHECK(refused("1 2 3.5\n") == numbers("1", "1 2 3.5"));
  CHECK(refused("#\n1 2 3\n\n") == numbers("3", ""));
  CHECK(refused("1 2 99999999999999999999\n") == numbers("1", "1 2 99999999999999999999"));
  CHECK(refused("1 2 -3\n") == "t, line 1, has a time that is not within 0 and 10^11 nanoseconds.");
  CHECK(refused("1 2 100000000001\n") == "t, line 1, has a time that is not within 0 and 10^11 nanoseconds.");
  CHECK(refused("") == "t has times of 0 blocks, but the model has 2: the embedding, every layer, the head.");
  CHECK(refused("1 2 3\n1 2 3\n1 2 3\n").starts_with("t has times of 3 blocks"));
  CHECK_THROWS_WITH(plan::read_measured("no/such/file", 2), "cannot read no/such/file.");
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
