// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/schedule.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

/// Made at compile time and at run time, with the same actions on the same ranks.
template <class Order, mo::pipeline_shape Shape> bool alike() {
  constexpr auto plan = mo::schedule_for<Order, Shape>;
  auto const made = mo::make_schedule(Order{}, Shape);
  mo::schedule_view const a = plan, b = made;
  bool same = mo::same_actions(a, b) && a.stages() == b.stages() && a.name() == b.name() && a.shape() == b.shape() &&
              a.bidirectional() == b.bidirectional();
  for (int s = 0; s < a.stages(); ++s)
    for (int i = 0; i < a.microbatches(); ++i) same = same && a.rank_of(s, i) == b.rank_of(s, i);
  return same;
}

}  // namespace

TEST_CASE("constant sizes and run-time sizes give the same schedule") {
  CHECK(alike<mo::gpipe, mo::pipeline_shape{.ranks = 3, .microbatches = 5}>());
  CHECK(alike<mo::one_f_one_b, mo::pipeline_shape{.ranks = 4, .microbatches = 2}>());
  CHECK(alike<mo::interleaved_1f1b, mo::pipeline_shape{.ranks = 2, .chunks = 3, .microbatches = 5, .group = 3}>());
  CHECK(alike<mo::zb_v, mo::pipeline_shape{.ranks = 3, .chunks = 2, .microbatches = 4}>());
  CHECK(alike<mo::dual_pipe, mo::pipeline_shape{.ranks = 4, .chunks = 2, .microbatches = 10}>());
}

TEST_CASE("a view lists ranks, indices and homes") {
  auto const made = mo::make_schedule(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  mo::schedule_view const plan = made;
  CHECK(plan.stages() == 2);
  CHECK(plan.rank_of(0, 1) == 0);
  CHECK(plan.rank_of(0, 2) == 1);
  CHECK(plan.rank_of(1, 3) == 0);
  CHECK(plan.index(plan.begin(1)) == static_cast<std::int64_t>(plan.rank(0).size()));
  CHECK(plan.size() == static_cast<std::int64_t>(plan.rank(0).size() + plan.rank(1).size()));
}

TEST_CASE("sizes that an order refuses throw, with the sizes and the reason") {
  CHECK_THROWS_WITH_AS(
      mo::make_schedule(mo::one_f_one_b{}, {.ranks = 4, .chunks = 2, .microbatches = 8}),
      "one_f_one_b with p = 4 ranks, v = 2 chunks, m = 8 micro-batches, g = 0: this order needs exactly "
      "one chunk a rank.",
      mo::schedule_error);
  CHECK_THROWS_AS(mo::make_schedule(mo::gpipe{}, {.ranks = 0, .microbatches = 8}), mo::schedule_error);
  CHECK_THROWS_AS(mo::make_schedule(mo::gpipe{}, {.ranks = 4, .microbatches = 0}), mo::schedule_error);
  CHECK_THROWS_AS(mo::make_schedule(mo::zb_v{}, {.ranks = 4, .chunks = 1, .microbatches = 8}), mo::schedule_error);
}

TEST_CASE("a schedule from lists of actions, and its text") {
  using mo::computation;
  std::vector<std::vector<mo::action>> const ranks{
      {{0, 0, computation::forward}, {1, 0, computation::forward}, {0, 1, computation::forward}},
      {},
  };
  mo::schedule const own("own", {.chunks = 2, .microbatches = 2}, {0, 0}, false, ranks);
  CHECK(mo::schedule_view(own).ranks() == 2);
  CHECK(mo::schedule_view(own).rank(1).empty());
  std::ostringstream out;
  mo::print(out, own, ",");
  CHECK(out.str() == "0F0,1F0,0F1\n");
  CHECK_THROWS_WITH_AS(mo::schedule("own", {}, {0, 2}, false, ranks), "a stage lives on rank 2, but there are 2 ranks.",
                       mo::schedule_error);
}

TEST_CASE("schedules differ by order, rank and joining") {
  mo::pipeline_shape const shape{.ranks = 1, .microbatches = 2};
  auto const a = mo::make_schedule(mo::interleaved_1f1b_overlapped{}, shape);
  auto const b = mo::make_schedule(mo::one_f_one_b{}, shape);
  CHECK_FALSE(mo::same_actions(a, b));
  CHECK_FALSE(mo::same_actions(a, mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 2})));
  CHECK(mo::same_actions(a, a));
}

TEST_CASE("a hash tells schedules apart by their actions, order, ranks and homes, and not by how they were made") {
  constexpr mo::pipeline_shape shape{.ranks = 2, .chunks = 2, .microbatches = 4};
  constexpr std::uint64_t constant = mo::hash_of(mo::schedule_for<mo::zb_v, shape>);
  auto const running = mo::make_schedule(mo::zb_v{}, shape);
  CHECK(mo::hash_of(running) == constant);
  mo::schedule_view const view = running;
  std::vector<std::vector<mo::action>> const lists{{view.begin(0), view.end(0)}, {view.begin(1), view.end(1)}};
  std::vector<int> const homes{0, 1, 1, 0};
  CHECK(mo::hash_of(mo::schedule("named otherwise", shape, homes, false, lists)) == constant);
  auto const changed = [&](auto const& change) {
    auto all = lists;
    auto places = homes;
    change(all, places);
    return mo::hash_of(mo::schedule("zb_v", shape, places, false, all));
  };
  std::vector<std::uint64_t> const others{
      mo::hash_of(mo::make_schedule(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = 5})),
      mo::hash_of(mo::make_schedule(mo::looped_bfs{}, shape)),
      changed([](auto& all, auto&) { std::swap(all[0][1], all[0][2]); }),
      changed([](auto& all, auto&) { all[1].push_back(all[0].back()), all[0].pop_back(); }),
      changed([](auto& all, auto&) { all[0][3].joined = !all[0][3].joined; }),
      changed([](auto& all, auto&) { all[0][3].type = mo::computation::backward; }),
      changed([](auto&, auto& places) { std::swap(places[0], places[1]); })};
  for (std::size_t i = 0; i < others.size(); ++i) {
    CHECK(others[i] != constant);
    for (std::size_t j = 0; j < i; ++j) CHECK(others[i] != others[j]);
  }
}
