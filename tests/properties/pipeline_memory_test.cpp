// SPDX-License-Identifier: Apache-2.0
// What a rank of a pipeline holds: in a step, tapes and rows of as many micro-batches as the analysis of its schedule says and
// however many there are; after it, and after one that failed, nothing; in an evaluation no tapes.
#include "counting_memory.hpp"
#include "pipeline/linear_stage.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace mo = moiety;
using linear::spread;

namespace {

constexpr std::int64_t hidden = 8, tokens = 32;
constexpr std::int64_t rows = tokens * hidden * std::int64_t{sizeof(double)};

struct block : mo::layer_spec<mo::dims{.hidden = hidden, .ffn = 64, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using experts = mo::mlp<mo::relu>;
  using losses = mo::losses<mo::load_balance<>>;
};
using stack = mo::moe_stack<block, spread>;

/// Counts what each thread asks for.
class by_thread final : public std::pmr::memory_resource {
 public:
  /// Of the thread that asks.
  counting& mine() {
    std::scoped_lock const lock(mutex_);
    return all_[std::this_thread::get_id()];
  }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    std::scoped_lock const lock(mutex_);
    counting& asks = all_[std::this_thread::get_id()];
    void* const made = asks.allocate(bytes, alignment);
    from_[made] = &asks;
    return made;
  }
  void do_deallocate(void* made, std::size_t bytes, std::size_t alignment) override {
    std::scoped_lock const lock(mutex_);
    from_.extract(made).mapped()->deallocate(made, bytes, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

  std::mutex mutex_;
  std::map<std::thread::id, counting> all_;
  std::map<void*, counting*> from_;
};

/// A stage on one rank, and what it holds.
class holder {
 public:
  holder(mo::context<spread>& of, by_thread& hook, mo::schedule_view const& by, mo::placement where)
      : ctx(of),
        mine(hook.mine()),
        plan(by),
        stage(of, mo::split_layers(std::vector<int>(8, 1), by.stages()), {}, where),
        weights(stage.make_weights(mo::seed{3})),
        gradients(stage.make_gradients()),
        engine(of, by, stage) {}

  /// Bytes that are live, without blocks that wait for their next use.
  std::int64_t live() const {
    ctx.memory().release();
    return mine.live;
  }
  /// The most that f holds over what is there before.
  template <class F> std::int64_t most(F const& f) const {
    std::int64_t const before = mine.most = live();
    f();
    return mine.most - before;
  }

  mo::microbatches batches() const { return mo::equal_batches(plan.microbatches(), tokens); }
  auto inputs() const {
    return [this](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{m}); };
  }
  template <class Loss> void step(Loss const& loss) { engine.step(weights, gradients, batches(), inputs(), loss); }
  void step() {
    step([this](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
  }
  void evaluate() {
    engine.evaluate(weights, batches(), inputs(), [](int, auto) { return mo::task_loss{}; });
  }

  mo::context<spread>& ctx;
  counting& mine;
  mo::schedule_view plan;
  stack stage;
  stack::weights_type weights;
  stack::gradients_type gradients;
  mo::pipeline_engine<spread, stack> engine;
};

/// What one micro-batch takes at one chunk of a rank, without an engine.
struct need {
  std::int64_t after_forward = 0, after_input_half = 0, most = 0, inference = 0;

  explicit need(holder& of) {
    std::int64_t const before = of.live();
    auto const rows_of = [&] { return of.ctx.matrix(tokens, hidden); };
    inference = of.most([&] {
      auto x = rows_of(), y = rows_of();
      of.stage.infer(of.weights, 0, x, y, {});
    });
    most = of.most([&] {
      auto x = rows_of(), dy = mo::matrix<double>();
      std::optional<stack::tape_type> tape;
      {
        auto y = rows_of();
        tape.emplace(of.stage.forward(of.weights, 0, x, y, {}));
      }
      after_forward = of.live() - before;
      dy = rows_of();
      {
        auto dx = rows_of();
        of.stage.backward_input(of.weights, *tape, dy, dx);
      }
      after_input_half = of.live() - before;
      of.stage.backward_weights(*tape, of.gradients);
    });
  }

  /// The most that micro-batches between forward, input half and weight half take on a rank.
  std::int64_t most_of(mo::schedule_view const& plan, int rank) const {
    std::int64_t now = 0, all = 0;
    for (mo::action const& a : plan.rank(rank)) {
      switch (a.type) {
        case mo::computation::forward: now += after_forward; break;
        case mo::computation::backward: now -= after_forward; break;
        case mo::computation::input_gradient: now += after_input_half - after_forward; break;
        case mo::computation::weight_gradient: now -= after_input_half; break;
      }
      all = std::max(all, now);
    }
    return all;
  }
};

template <class F> void on_ranks_of(mo::schedule_view const& plan, mo::placement where, F const& f) {
  by_thread hook;
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        holder mine(ctx, hook, plan, where);
        f(mine);
      },
      {}, {.pipeline = plan.ranks()}, mo::host{.threads = 1, .memory = &hook});
}

struct held {
  std::int64_t step = 0, planned = 0, evaluation = 0, left = 0;
  need of_one;
};

/// By rank.
template <class Order> std::vector<held> memory_of(Order const&, mo::schedule_view const& plan) {
  std::vector<std::optional<held>> all(static_cast<std::size_t>(plan.ranks()));
  on_ranks_of(plan, Order::placed, [&](holder& mine) {
    need const of_one(mine);
    std::int64_t const before = mine.live(), step = mine.most([&] { mine.step(); }),
                       evaluation = mine.most([&] { mine.evaluate(); });
    int const rank = mine.ctx.pipeline().rank();
    all[static_cast<std::size_t>(rank)] = {step, of_one.most_of(plan, rank), evaluation, mine.live() - before, of_one};
  });
  std::vector<held> found;
  for (auto const& one : all) found.push_back(one.value());
  return found;
}

/// What rank r holds against what the plan says.
void check_planned(held const& found, mo::schedule_view const& plan, int r) {
  std::int64_t const peak = mo::peak_activations(plan, r);
  CHECK(found.planned >= peak * found.of_one.after_forward);
  CHECK(found.step >= found.planned);
  // Beside them: the backward that is at work, rows under way, and blocks that serve smaller requests.
  std::int64_t const at_work = found.of_one.most - found.of_one.after_forward;
  CHECK(found.step <= found.planned + at_work + 8 * peak * rows);
  CHECK(found.evaluation <= found.of_one.inference + 4 * rows);
  CHECK(found.left == 0);
}

}  // namespace

TEST_CASE("a step holds what its plan says, whatever the number of micro-batches, and afterwards nothing") {
  for (int const count : {8, 16})
    linear::for_each_order(4, count, [&](auto const& order, mo::schedule_view const& plan) {
      auto const all = memory_of(order, plan);
      for (int r = 0; r < 4; ++r) {
        INFO(std::string(order.name), ", ", plan.stages(), " stages, ", count, " micro-batches, rank ", r);
        check_planned(all[static_cast<std::size_t>(r)], plan, r);
      }
    });
}

TEST_CASE("four times the micro-batches take no more memory where the plan holds no more of them") {
  // Each is compared with its plan: how long rows are under way depends on how threads run, so two runs differ.
  auto const of = [](auto const& order, int count) {
    mo::schedule const plan = mo::make_schedule(order, {.ranks = 4, .microbatches = count});
    auto const all = memory_of(order, plan);
    for (int r = 0; r < 4; ++r) {
      INFO(std::string(order.name), ", ", count, " micro-batches, rank ", r);
      check_planned(all[static_cast<std::size_t>(r)], plan, r);
    }
    return all;
  };
  auto const few = of(mo::one_f_one_b{}, 4), many = of(mo::one_f_one_b{}, 16), all = of(mo::gpipe{}, 16);
  for (std::size_t r = 0; r < 4; ++r) {
    CAPTURE(r);
    CHECK(many[r].planned == few[r].planned);
    CHECK(many[r].of_one.inference == few[r].of_one.inference);
    CHECK(all[r].planned - many[r].planned >= 12 * many[r].of_one.after_forward);
    CHECK(all[r].step - many[r].step > 11 * many[r].of_one.after_forward);
  }
}

namespace {
struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};
}  // namespace

TEST_CASE(
    "nothing is held after a step that failed between forward and backward, and the next one holds what it should") {
  mo::schedule const plan = mo::make_schedule(mo::zb_v{}, {.ranks = 1, .chunks = 2, .microbatches = 4});
  on_ranks_of(plan, mo::placement::v, [&](holder& mine) {
    std::int64_t const before = mine.live(), usual = mine.most([&] { mine.step(); });
    CHECK_THROWS_AS(mine.step([&](int m, auto y, auto dy) {
      if (m == 2) throw broken("no loss");
      return mo::square_error(mine.ctx, y, dy);
    }),
                    broken);
    CHECK(mine.live() == before);
    CHECK(mine.most([&] { mine.step(); }) == usual);
    CHECK(mine.live() == before);
  });
}

TEST_CASE("nor on the other ranks") {
  mo::schedule const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 3, .microbatches = 6});
  std::atomic<int> empty{0};
  auto const fails = [&] {
    on_ranks_of(plan, mo::placement::loop, [&](holder& mine) {
      std::int64_t const before = mine.live();
      try {
        mine.step([&](int m, auto y, auto dy) {
          if (m == 2) throw broken("no loss");
          return mo::square_error(mine.ctx, y, dy);
        });
      } catch (...) {
        empty += mine.live() == before;
        throw;
      }
    });
  };
  CHECK_THROWS_AS(fails(), broken);
  CHECK(empty == 3);
}
