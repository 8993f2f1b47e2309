// SPDX-License-Identifier: Apache-2.0
// What ranks really do, and when: every order on thread ranks, against its plan.
#include <moiety/pipeline/timeline.hpp>

#include "digit_groups.hpp"
#include "pipeline/linear_stage.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace mo = moiety;
using linear::spread;
using recorded = std::vector<mo::timed_operation>;
using instant = std::chrono::steady_clock::time_point;

namespace {

/// What every rank recorded of a step. `observer(rank, times)` is told in place of the timeline if it is given.
struct watched {
  std::function<mo::timeline::clock(int)> clock = [](int) { return &std::chrono::steady_clock::now; };
  std::function<mo::step_observer*(int, mo::timeline&)> observer = [](int, mo::timeline& times) { return &times; };
  std::function<void(int, mo::action const&)> works = [](int, mo::action const&) {};
};

recorded step(mo::schedule_view const& plan, watched const& by = {}) {
  std::vector<recorded> all(static_cast<std::size_t>(plan.ranks()));
  linear::matrices const weights = linear::weights_of(plan.stages());
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        int const rank = ctx.pipeline().rank();
        auto const body = [&](auto& stage) {
          linear::matrices gradients = linear::zeros(plan.stages());
          mo::pipeline_engine engine{ctx, plan, stage};
          mo::timeline times(by.clock(rank));
          engine.record(*by.observer(rank, times));
          engine.step(weights, gradients, mo::equal_batches(plan.microbatches(), linear::tokens), linear::fill,
                      [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
          all[static_cast<std::size_t>(rank)] = mo::timelines(ctx.pipeline(), times);
        };
        linear::with_stage(
            plan, ctx, [&](mo::action const& a) { by.works(rank, a); }, body);
      },
      {}, {.pipeline = plan.ranks()});
  for (recorded const& other : all) CHECK(mo::to_csv(other) == mo::to_csv(all[0]));
  return all[0];
}

recorded of_rank(recorded const& all, int rank) {
  recorded mine;
  std::copy_if(all.begin(), all.end(), std::back_inserter(mine), [&](auto const& o) { return o.rank == rank; });
  return mine;
}

/// Time that passes when a computation takes some, and when what it needs comes later than its rank is free.
class virtual_time {
 public:
  virtual_time(mo::schedule_view const& plan, mo::step_costs const& costs)
      : plan_(plan), costs_(costs), now_(static_cast<std::size_t>(plan.ranks())) {
    made_[0] = made_[1] = std::vector<std::int64_t>(static_cast<std::size_t>(plan.stages() * plan.microbatches()));
  }

  std::int64_t now(int rank) const { return now_[static_cast<std::size_t>(rank)]; }

  /// Whatever a rank has computed has taken its time.
  void works(int rank, mo::action const& a) { now_[static_cast<std::size_t>(rank)] += costs_.of(a.type); }

  /// The rank is idle until the input of the computation is there.
  void await(int rank, mo::action const& a) {
    bool const forward = a.type == mo::computation::forward;
    int const from = a.stage + (forward ? -1 : 1);
    if (a.type == mo::computation::weight_gradient || from < 0 || from >= plan_.stages()) return;
    std::int64_t const hop = plan_.rank_of(from, a.microbatch) == rank ? 0 : costs_.hop;
    auto& mine = now_[static_cast<std::size_t>(rank)];
    mine = std::max(mine, made_[forward ? 0 : 1][at(from, a.microbatch)] + hop);
  }

  /// What the computation has made is there. Read by the rank that the message of it goes to.
  void made(int rank, mo::action const& a) {
    if (a.type == mo::computation::weight_gradient) return;
    made_[a.type == mo::computation::forward ? 0 : 1][at(a.stage, a.microbatch)] = now(rank);
  }

 private:
  std::size_t at(int stage, int microbatch) const {
    return static_cast<std::size_t>(stage * plan_.microbatches() + microbatch);
  }

  mo::schedule_view plan_;
  mo::step_costs costs_;
  std::vector<std::int64_t> now_, made_[2];  // of ranks; of stages and micro-batches: outputs, gradients
};

/// Sets the time of a rank before its timeline reads it. The parts of a joined step await what both need, and are there when
/// both are done.
class virtual_observer final : public mo::step_observer {
 public:
  virtual_observer(virtual_time& time, mo::schedule_view const& plan, int rank, mo::timeline& times)
      : time_(&time), plan_(plan), rank_(rank), times_(&times), next_(plan.begin(rank)) {}

  void begins(mo::operation const& o) override {
    if (o.kind == mo::message::none) {
      time_->await(rank_, o.what);
      if (ahead()) time_->await(rank_, next_[1]);
    }
    times_->begins(o);
  }
  void ends(mo::operation const& o) override {
    times_->ends(o);
    if (o.kind != mo::message::none) return;
    bool const joined = next_->joined, first = ahead();
    if (joined) time_->made(rank_, next_[-1]);
    if (!first) time_->made(rank_, *next_);
    ++next_;
  }

 private:
  bool ahead() const { return next_ + 1 != plan_.end(rank_) && next_[1].joined; }

  virtual_time* time_;
  mo::schedule_view plan_;
  int rank_;
  mo::timeline* times_;
  mo::action const* next_;
};

recorded virtual_step(mo::schedule_view const& plan, mo::step_costs const& costs) {
  virtual_time time(plan, costs);
  std::vector<std::unique_ptr<virtual_observer>> observers(static_cast<std::size_t>(plan.ranks()));
  return step(plan, {.clock = [&](int rank) -> mo::timeline::clock {
                       return [&time, rank] { return instant(std::chrono::nanoseconds(time.now(rank))); };
                     },
                     .observer = [&](int rank, mo::timeline& times) -> mo::step_observer* {
                       auto& mine = observers[static_cast<std::size_t>(rank)];
                       mine = std::make_unique<virtual_observer>(time, plan, rank, times);
                       return mine.get();
                     },
                     .works = [&](int rank, mo::action const& a) { time.works(rank, a); }});
}

/// Tells when an operation of a rank has begun, or has ended, and lets others wait for that.
class moment final : public mo::step_observer {
 public:
  enum class edge { begin, end };
  moment(mo::message kind, mo::action const& what, edge at) : kind_(kind), what_(what), at_(at) {}

  mo::step_observer* of(mo::timeline& times) { return times_ = &times, this; }
  void begins(mo::operation const& o) override {
    times_->begins(o);
    if (at_ == edge::begin) tell(o);
  }
  void ends(mo::operation const& o) override {
    times_->ends(o);
    if (at_ == edge::end) tell(o);
  }
  void await() {
    if (come_.get_future().wait_for(std::chrono::seconds(60)) != std::future_status::ready)
      throw mo::state_error("what was waited for has not come.");
  }

 private:
  void tell(mo::operation const& o) {
    if (o.kind == kind_ && o.what == what_) come_.set_value();
  }

  mo::message kind_;
  mo::action what_;
  edge at_;
  mo::timeline* times_ = nullptr;
  std::promise<void> come_;
};

mo::timed_operation find(recorded const& all, mo::message kind, mo::action const& what) {
  auto const found =
      std::find_if(all.begin(), all.end(), [&](auto const& o) { return o.what.kind == kind && o.what.what == what; });
  REQUIRE(found != all.end());
  return *found;
}

}  // namespace

TEST_CASE("four ranks do the operations of every order as it planned them, one after another") {
  int plans = 0;
  linear::for_each_order(4, 8, [&](auto const& order, mo::schedule_view const& plan) {
    INFO(std::string(order.name) << ", " << plan.stages() << " stages");
    recorded const all = step(plan);
    for (int r = 0; r < 4; ++r) {
      CAPTURE(r);
      recorded const mine = of_rank(all, r);
      mo::detail::rank_plan const own(plan, r, 4, mo::detail::receives::late);
      auto const planned = own.operations();
      REQUIRE(mine.size() == planned.size());
      CHECK(std::equal(mine.begin(), mine.end(), planned.begin(),
                       [](mo::timed_operation const& did, mo::operation const& o) { return did.what == o; }));
      for (std::size_t i = 0; i < mine.size(); ++i) {
        CHECK(mine[i].begin <= mine[i].end);
        if (i > 0) CHECK(mine[i - 1].end <= mine[i].begin);
      }
    }
    ++plans;
  });
  CHECK(plans == 13);
}

TEST_CASE("where actions take the times of a plan, every order ends as its plan says") {
  for (mo::step_costs const costs :
       {mo::unit_costs, mo::step_costs{.forward = 5, .input_gradient = 7, .weight_gradient = 3, .hop = 2}})
    linear::for_each_order(4, 8, [&](auto const& order, mo::schedule_view const& plan) {
      INFO(std::string(order.name) << ", " << plan.stages() << " stages, hop " << costs.hop);
      recorded measured = virtual_step(plan, costs);
      std::erase_if(measured, [](mo::timed_operation const& o) { return o.what.kind != mo::message::none; });
      recorded const planned = mo::planned_timeline(plan, costs);
      REQUIRE(measured.size() == planned.size());
      std::int64_t last = 0;
      for (std::size_t i = 0; i < planned.size(); ++i) {
        bool const ahead = i + 1 < planned.size() && planned[i + 1].what.what.joined;
        CHECK(measured[i].rank == planned[i].rank);
        CHECK(measured[i].what == planned[i].what);
        if (!planned[i].what.what.joined) CHECK(measured[i].begin == planned[i].begin);
        if (!ahead) CHECK(measured[i].end == planned[i].end);
        last = std::max(last, measured[i].end);
      }
      CHECK(last == mo::makespan(plan, costs));
    });
}

namespace {

/// A step in which the rank of `slow` goes on with it once the moment has come on the other one.
recorded step_held(mo::schedule const& plan, mo::action const& slow, moment& waits, int other) {
  return step(plan, {.observer = [&](int rank, mo::timeline& times) -> mo::step_observer* {
                       if (rank != other) return &times;
                       return waits.of(times);
                     },
                     .works =
                         [&](int, mo::action const& a) {
                           if (a == slow) waits.await();
                         }});
}

}  // namespace

TEST_CASE("what comes late is waited for in the receive that needs it") {
  using mo::computation, mo::message;
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 3});
  mo::action const slow{0, 1, computation::forward}, next{1, 1, computation::forward};
  // Stage 0 does not end micro-batch 1 before stage 1 waits for it.
  moment waits(message::receive, next, moment::edge::begin);
  recorded const all = step_held(plan, slow, waits, 1);
  auto const made = find(all, message::none, slow), received = find(all, message::receive, next),
             before = find(all, message::none, {1, 0, computation::forward}), used = find(all, message::none, next);
  CHECK(before.end <= received.begin);
  CHECK(made.begin < made.end);
  CHECK(received.begin <= made.end);
  CHECK(received.end >= made.end);
  CHECK(used.begin >= received.end);
}

TEST_CASE("a send is over before it is received, and its rank goes on to what it waits for itself") {
  using mo::computation, mo::message;
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 3});
  mo::action const slow{1, 0, computation::forward}, first_back{0, 0, computation::backward};
  // Stage 1 does not end micro-batch 0 before stage 0 waits for the first gradient.
  moment waits(message::receive, first_back, moment::edge::begin);
  recorded const all = step_held(plan, slow, waits, 0);
  auto const blocked = find(all, message::none, slow), gradient = find(all, message::receive, first_back),
             made = find(all, message::none, {1, 0, computation::backward});
  for (int m = 0; m < 3; ++m) {
    CHECK(find(all, message::send, {0, m, computation::forward}).end <= gradient.begin);
    if (m > 0) CHECK(find(all, message::receive, {1, m, computation::forward}).begin >= blocked.end);
  }
  CHECK(gradient.begin <= blocked.end);
  CHECK(gradient.end >= made.end);
}

TEST_CASE("a planned timeline has the starts and ends of the replay") {
  mo::step_costs const costs{.forward = 4, .input_gradient = 5, .weight_gradient = 6, .hidden = 2, .hop = 1};
  for (mo::schedule const& made : {mo::make_schedule(mo::dual_pipe_v{}, {.ranks = 2, .chunks = 2, .microbatches = 5}),
                                   mo::make_schedule(mo::zb_h1{}, {.ranks = 3, .microbatches = 6})}) {
    mo::schedule_view const plan = made;
    auto const starts = mo::start_times(plan, costs);
    recorded const all = mo::planned_timeline(plan, costs);
    REQUIRE(all.size() == starts.size());
    std::int64_t last = 0, joined = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      CHECK(all[i].begin == starts[i]);
      if (all[i].what.what.joined) {
        ++joined;
        CHECK(all[i - 1].begin == all[i].begin);
        CHECK(all[i - 1].end == all[i].end);
        CHECK(all[i].end - all[i].begin == 4 + 11 - 2);
      } else if (i + 1 == all.size() || !all[i + 1].what.what.joined) {
        CHECK(all[i].end - all[i].begin == costs.of(all[i].what.what.type));
      }
      last = std::max(last, all[i].end);
    }
    CHECK((joined > 0) == (plan.name() == "dual_pipe_v"));
    CHECK(last == mo::makespan(plan, costs));
  }
}

TEST_CASE("as text, one operation a line") {
  mo::operation const sent{{1, 3, mo::computation::backward}, mo::message::send, 0, 1};
  recorded const all{{0, {{2, 0, mo::computation::weight_gradient}}, 5, 9}, {1, sent, -4, 1234567890123}};
  CHECK(mo::to_csv(all) == "rank,kind,stage,microbatch,begin,end\n0,W,2,0,5,9\n1,SEND_B,1,3,-4,1234567890123\n");
  CHECK(mo::to_csv(recorded{}) == "rank,kind,stage,microbatch,begin,end\n");
  std::string const plain = mo::to_csv(all);
  digit_groups const locale;
  CHECK(mo::to_csv(all) == plain);
}

TEST_CASE("a timeline goes on from step to step until it is cleared") {
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 1, .microbatches = 3});
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        linear::stage stage(plan, 0);
        mo::pipeline_engine engine{ctx, plan, stage};
        linear::matrices const weights = linear::weights_of(1);
        linear::matrices gradients = linear::zeros(1);
        auto const once = [&] {
          engine.step(weights, gradients, mo::equal_batches(3, 2), linear::fill,
                      [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
        };
        once();
        mo::timeline times;
        engine.record(times);
        CHECK(times.operations().empty());
        once();
        CHECK(times.operations().size() == 6);
        once();
        CHECK(times.operations().size() == 12);
        times.clear();
        once();
        CHECK(times.operations().size() == 6);
      },
      {}, mo::layout{});
}
