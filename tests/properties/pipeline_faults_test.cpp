// SPDX-License-Identifier: Apache-2.0
// Steps in which something goes wrong on one rank: all ranks come to know in bounded time, the caller gets the cause, and the
// next run is in order.
#include "backend/transport/clock_of_fault.hpp"
#include "pipeline/linear_stage.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace mo = moiety;

namespace {

using namespace std::chrono_literals;

struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using probe = std::function<void(mo::action const&)>;
using plans = std::vector<mo::schedule>;

/// What came of a step: for each rank what it threw, and for the caller.
struct result {
  std::vector<std::exception_ptr> ranks;
  std::exception_ptr caller;
  linear::outcome out;
  std::int64_t live = 0;  // tapes that outlived the step
};

struct how {
  mo::run_options options{.deadline = 60s};
  bool numbers_differ = false;
  int leaves = -1;                       // a rank that takes no part
  std::vector<std::int64_t> sizes{};     // of the micro-batches of rank 1
  std::function<void(int)> failed = {};  // called by a rank that has thrown
  mo::schedule const* apart = nullptr;   // every rank has an engine of it too, and rank 1 steps that
  mo::schedule const* model = nullptr;   // whose stages rank 1 has
};

template <class E> bool threw(std::exception_ptr const& what) {
  if (what == nullptr) return false;
  try {
    std::rethrow_exception(what);
  } catch (E const&) {
    return true;
  } catch (...) {
    return false;
  }
}

mo::comm_fault fault_of(std::exception_ptr const& what) {
  REQUIRE(threw<mo::comm_error>(what));
  try {
    std::rethrow_exception(what);
  } catch (mo::comm_error const& e) {
    return e.fault;
  }
}

std::string words_of(std::exception_ptr const& what) {
  try {
    std::rethrow_exception(what);
  } catch (std::exception const& e) {
    return e.what();
  }
}

/// One step, where rank r follows plans[r mod size].
result step(plans const& all, probe const& seen, how const& h = {}) {
  mo::schedule_view const first = all[0];
  int const size = first.ranks();
  result got{
      std::vector<std::exception_ptr>(static_cast<std::size_t>(size)), nullptr, {{}, linear::zeros(first.stages())}};
  linear::matrices const weights = linear::weights_of(first.stages());
  std::atomic<std::int64_t> live{0};
  auto const body = [&](mo::context<linear::spread>& ctx) {
    int const rank = ctx.pipeline().rank();
    if (rank == h.leaves) return mo::task_loss{};
    mo::schedule_view const plan = all[static_cast<std::size_t>(rank) % all.size()];
    linear::stage stage(rank == 1 && h.model != nullptr ? *h.model : plan, rank, seen);
    try {
      mo::pipeline_engine own{ctx, plan, stage}, of_another{ctx, h.apart != nullptr ? *h.apart : plan, stage};
      auto& engine = rank == 1 && h.apart != nullptr ? of_another : own;
      auto const batches = rank == 1 && !h.sizes.empty() ? mo::microbatches(h.sizes)
                                                         : mo::equal_batches(plan.microbatches(), linear::tokens);
      engine.step(
          weights, got.out.gradients, batches, linear::fill,
          [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, h.numbers_differ ? rank : 0);
      live += stage.live();
      return engine.task();
    } catch (...) {
      got.ranks[static_cast<std::size_t>(rank)] = std::current_exception();
      live += stage.live();
      if (h.failed) h.failed(rank);
      throw;
    }
  };
  auto const begin = std::chrono::steady_clock::now();
  try {
    got.out.task = mo::run<linear::spread>(body, h.options, {.pipeline = size});
  } catch (...) {
    got.caller = std::current_exception();
  }
  CHECK(std::chrono::steady_clock::now() - begin < 30s);
  got.live = live;
  return got;
}

void check_healthy(plans const& all) {
  result const got = step(all, {});
  CHECK(got.caller == nullptr);
  CHECK(got.out == linear::expected(mo::schedule_view(all[0]).stages(), mo::schedule_view(all[0]).microbatches()));
}

plans plans_of_interest(int ranks, int microbatches) {
  mo::pipeline_shape const one{.ranks = ranks, .microbatches = microbatches},
      two{.ranks = ranks, .chunks = 2, .microbatches = microbatches};
  return {mo::make_schedule(mo::gpipe{}, one), mo::make_schedule(mo::one_f_one_b{}, one),
          mo::make_schedule(mo::zb_h1{}, one), mo::make_schedule(mo::zb_v{}, two)};
}

}  // namespace

TEST_CASE("a stage that throws at any computation: every rank gets an error, the caller the cause") {
  for (mo::schedule const& plan : plans_of_interest(3, 4)) {
    mo::schedule_view const view = plan;
    for (int s = 0; s < view.stages(); ++s)
      for (int m = 0; m < 4; ++m)
        for (auto const type :
             {mo::computation::forward, mo::computation::input_gradient, mo::computation::weight_gradient}) {
          INFO(std::string(view.name()) << ", " << s << mo::letter(type) << m);
          result const got = step({plan}, [&](mo::action const& a) {
            if (a == mo::action{s, m, type}) throw broken("a part of the model is broken");
          });
          CHECK(threw<broken>(got.caller));
          int const rank = view.rank_of(s, m);
          for (int r = 0; r < 3; ++r) {
            auto const& error = got.ranks[static_cast<std::size_t>(r)];
            CHECK((r == rank ? threw<broken>(error) : threw<mo::comm_error>(error)));
            if (r != rank && threw<mo::comm_error>(error)) CHECK(fault_of(error) == mo::comm_fault::remote);
          }
        }
    check_healthy({plan});
  }
}

TEST_CASE("gradients of a step that threw are in order again once they are reset") {
  mo::schedule const plan = mo::make_schedule(mo::zb_v{}, {.ranks = 1, .chunks = 2, .microbatches = 4});
  mo::run<linear::spread>(
      [&](mo::context<linear::spread>& ctx) {
        bool breaks = true;
        linear::stage stage(plan, 0, [&](mo::action const& a) {
          if (breaks && a == mo::action{0, 2, mo::computation::weight_gradient}) throw broken("this time");
        });
        mo::pipeline_engine engine{ctx, plan, stage};
        linear::matrices const weights = linear::weights_of(2);
        linear::matrices gradients = linear::zeros(2);
        auto const once = [&] {
          engine.step(weights, gradients, mo::equal_batches(4, linear::tokens), linear::fill,
                      [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
        };
        CHECK_THROWS_AS(once(), broken);
        CHECK(gradients != linear::zeros(2));
        CHECK(engine.task() == mo::task_loss{});
        breaks = false;
        gradients = linear::zeros(2);
        once();
        CHECK(linear::outcome{engine.task(), gradients} == linear::expected(2, 4));
        CHECK(stage.live() == 0);
      },
      {}, mo::layout{});
}

TEST_CASE("what inputs and loss throw is thrown, and a rank that leaves is missed") {
  plans const all{mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 4})};
  for (bool const by_inputs : {true, false})
    CHECK_THROWS_AS(mo::run<linear::spread>(
                        [&](mo::context<linear::spread>& ctx) {
                          linear::stage stage(all[0], ctx.pipeline().rank());
                          mo::pipeline_engine engine{ctx, all[0], stage};
                          linear::matrices const weights = linear::weights_of(2);
                          linear::matrices gradients = linear::zeros(2);
                          engine.step(
                              weights, gradients, mo::equal_batches(4, 2),
                              [&](int m, auto) {
                                if (by_inputs && m == 3) throw broken("no more inputs");
                              },
                              [&](int m, auto, auto) -> mo::task_loss {
                                if (!by_inputs && m == 2) throw broken("no loss");
                                return {};
                              });
                        },
                        {.deadline = 60s}, {.pipeline = 2}),
                    broken);
  for (mo::schedule const& plan : plans_of_interest(3, 4))
    for (int rank = 0; rank < 3; ++rank) {
      result const got = step({plan}, {}, {.leaves = rank});
      CHECK(threw<mo::comm_error>(got.caller));
      for (int r = 0; r < 3; ++r) CHECK(threw<mo::comm_error>(got.ranks[static_cast<std::size_t>(r)]) == (r != rank));
    }
}

TEST_CASE("a slow stage changes nothing below the deadline, and is an error of all ranks beyond it") {
  for (mo::schedule const& plan : plans_of_interest(3, 4)) {
    mo::schedule_view const view = plan;
    result const slow = step({plan}, [](mo::action const& a) {
      if (a.stage == 1) std::this_thread::sleep_for(3ms);
    });
    CHECK(slow.caller == nullptr);
    CHECK(slow.out == linear::expected(view.stages(), 4));

    std::atomic<int> failed{0};
    clock_of_fault::happened = false;
    result const late =
        step({plan},
             [&](mo::action const& a) {
               if (!(a == mo::action{1, 2, mo::computation::forward})) return;
               clock_of_fault::happened = true;
               while (failed < 2) std::this_thread::yield();
             },
             {.options = {.deadline = 30s, .now = &clock_of_fault::now}, .failed = [&](int) { ++failed; }});
    for (int r = 0; r < 3; ++r) CHECK(threw<mo::comm_error>(late.ranks[static_cast<std::size_t>(r)]));
    CHECK(threw<mo::comm_error>(late.caller));
    int timeouts = 0;
    for (auto const& error : late.ranks) timeouts += error != nullptr && fault_of(error) == mo::comm_fault::timeout;
    CHECK(timeouts >= 1);
  }
}

TEST_CASE("a message that is not the awaited one is a mismatch that says both") {
  mo::pipeline_shape const shape{.ranks = 2, .microbatches = 4};
  auto const one = mo::make_schedule(mo::one_f_one_b{}, shape);
  auto const words = [](result const& got) {
    for (auto const& error : got.ranks) CHECK(threw<mo::comm_error>(error));
    CHECK(fault_of(got.caller) == mo::comm_fault::mismatch);
    return words_of(got.caller);
  };
  std::string const number = words(step({one}, {}, {.numbers_differ = true}));
  CHECK(number.find("stage 0 sent micro-batch 0 of step 0 where 1RECV_F0 of step 1 was awaited") != std::string::npos);
  CHECK(words(step({one}, {}, {.sizes = {2, 2, 1, 2}})).find("bytes") != std::string::npos);
  for (auto const& plan : {mo::make_schedule(mo::gpipe_lifo{}, shape), mo::make_schedule(mo::gpipe{}, shape)}) {
    std::string const apart = words(step({one}, {}, {.apart = &plan}));
    CHECK(apart.find("of step 0 of another schedule where") != std::string::npos);
  }
}

TEST_CASE("ranks with different plans or models get no engine, and all of them hear what differs") {
  mo::pipeline_shape const shape{.ranks = 2, .microbatches = 4};
  auto const one = mo::make_schedule(mo::one_f_one_b{}, shape), all_first = mo::make_schedule(mo::gpipe{}, shape);
  auto const differ = [](mo::schedule const& a, mo::schedule const& b, char const* what) {
    result const got = step({a, b}, {});
    for (auto const& error : got.ranks) {
      REQUIRE(threw<mo::config_error>(error));
      CHECK(words_of(error).find(mo::detail::sentence("the ranks of a pipeline disagree on ", what)) !=
            std::string::npos);
    }
  };
  differ(one, all_first, "the order of the schedule");
  differ(one, mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 5}), "the micro-batches");
  auto const named_alike = [&](mo::schedule_view const& of) {
    return mo::schedule("1f1b", shape, {0, 1}, false, {{of.begin(0), of.end(0)}, {of.begin(1), of.end(1)}});
  };
  differ(named_alike(one), named_alike(all_first), "the actions of the schedule");
  // On rank 1 alone the model does not fit: both refuse, in its words.
  result const got = step({mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 2, .chunks = 2, .microbatches = 4})}, {},
                          {.model = &one});
  for (auto const& error : got.ranks) {
    REQUIRE(threw<mo::config_error>(error));
    CHECK(
        words_of(error).find("puts 4 stages on the ranks by mo::placement::loop, 2 of them on this one, but the model "
                             "has 1 chunks") != std::string::npos);
  }
}

TEST_CASE("a schedule that is not sound, on all ranks or on one, and stages of other widths") {
  mo::pipeline_shape const shape{.ranks = 2, .microbatches = 4};
  auto const sound = mo::make_schedule(mo::one_f_one_b{}, shape);
  mo::schedule_view const view = sound;
  std::vector<mo::action> const first(view.begin(0), view.end(0));
  mo::schedule const lost("1f1b", shape, {0, 1}, false,
                          {{first.begin(), first.end() - 1}, {view.begin(1), view.end(1)}});
  for (auto const& error : step({lost}, {}).ranks) CHECK(threw<mo::schedule_error>(error));
  for (auto const& error : step({sound, lost}, {}).ranks) CHECK(threw<mo::config_error>(error));

  struct of_width : linear::stage {
    using linear::stage::stage;
    std::int64_t columns = linear::width;
    std::int64_t width() const { return columns; }
  };
  std::vector<std::string> words(2);
  CHECK_THROWS_AS(mo::run<linear::spread>(
                      [&](mo::context<linear::spread>& ctx) {
                        int const rank = ctx.pipeline().rank();
                        of_width stage(sound, rank);
                        stage.columns += rank;
                        try {
                          mo::pipeline_engine engine{ctx, sound, stage};
                        } catch (mo::config_error const& error) {
                          words[static_cast<std::size_t>(rank)] = error.what();
                          throw;
                        }
                      },
                      {}, {.pipeline = 2}),
                  mo::config_error);
  for (std::string const& heard : words)
    CHECK(heard.find("disagree on the width of rows between stages") != std::string::npos);
}
