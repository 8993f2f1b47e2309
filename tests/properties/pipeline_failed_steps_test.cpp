// SPDX-License-Identifier: Apache-2.0
// What is left after a step that failed, and what an engine refuses: nothing is kept of a failed step, weights and optimiser
// are as they were, ranks that failed stay failed, and steps do not nest.
#include "backend/transport/thread_ranks.hpp"
#include "pipeline/linear_stage.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>
#include <moiety/training/adamw.hpp>
#include <moiety/training/global_norm.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <ratio>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mo = moiety;
using linear::spread;

namespace {

using namespace std::chrono_literals;

struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Whether the call threw an E.
template <class E, class Call> bool throws(Call const& call) {
  try {
    call();
  } catch (E const&) {
    return true;
  } catch (...) {
  }
  return false;
}

/// What ranks of a run found, one letter each.
class findings {
 public:
  explicit findings(int ranks) : all_(static_cast<std::size_t>(ranks), '-') {}
  void set(int rank, char found) { all_[static_cast<std::size_t>(rank)] = found; }
  std::string const& all() const { return all_; }

 private:
  std::string all_;
};

/// An engine on one rank of a plan, with all that a step of it needs.
struct rank_of_plan {
  mo::context<spread>& ctx;
  mo::schedule_view plan;
  linear::stage stage;
  linear::matrices weights, gradients;
  mo::pipeline_engine<spread, linear::stage> engine;

  rank_of_plan(mo::context<spread>& of, mo::schedule_view const& by, std::function<void(mo::action const&)> seen = {})
      : ctx(of),
        plan(by),
        stage(by, of.pipeline().rank(), std::move(seen)),
        weights(linear::weights_of(by.stages())),
        gradients(linear::zeros(by.stages())),
        engine(of, by, stage) {}

  template <class Inputs> void step(mo::microbatches const& batches, Inputs const& inputs, std::int64_t number = 0) {
    engine.step(
        weights, gradients, batches, inputs, [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); },
        number);
  }
  void step() { step(mo::equal_batches(plan.microbatches(), linear::tokens), linear::fill); }
  void evaluate() {
    mo::matrix<double> unused(linear::tokens, linear::width);
    engine.evaluate(weights, mo::equal_batches(plan.microbatches(), linear::tokens), linear::fill,
                    [&](int, auto y) { return mo::square_error(ctx, y, unused.view()); });
  }
};

std::vector<mo::schedule> plans_of_interest(int ranks) {
  return {mo::make_schedule(mo::gpipe{}, {.ranks = ranks, .microbatches = 4}),
          mo::make_schedule(mo::one_f_one_b{}, {.ranks = ranks, .microbatches = 4}),
          mo::make_schedule(mo::zb_v{}, {.ranks = ranks, .chunks = 2, .microbatches = 4})};
}

}  // namespace

TEST_CASE("nothing is kept of a step that failed, and ranks that failed stay failed") {
  for (int const ranks : {2, 3})
    for (mo::schedule const& made : plans_of_interest(ranks))
      for (auto const type :
           {mo::computation::forward, mo::computation::input_gradient, mo::computation::weight_gradient}) {
        mo::schedule_view const plan = made;
        INFO(std::string(plan.name()) << ", " << mo::letter(type));
        findings found(ranks);
        CHECK(throws<broken>([&] {
          mo::run<spread>(
              [&](mo::context<spread>& ctx) {
                int const rank = ctx.pipeline().rank();
                rank_of_plan mine(ctx, plan, [&](mo::action const& a) {
                  if (a == mo::action{plan.stages() - 1, 2, type}) throw broken("a part of the model is broken");
                });
                try {
                  mine.step();
                } catch (...) {
                  bool const nothing = mine.stage.live() == 0 && mine.engine.task() == mo::task_loss{};
                  bool const here = throws<broken>([] { throw; });
                  // The cause leaves at once; ranks that were told try again.
                  bool const closed = here || (throws<mo::comm_error>([&] { mine.step(); }) &&
                                               throws<mo::comm_error>([&] { mine.evaluate(); }));
                  found.set(rank, nothing && closed ? (here ? 'b' : 'c') : '?');
                  throw;
                }
              },
              {.deadline = 60s}, {.pipeline = ranks});
        }));
        std::string wanted(static_cast<std::size_t>(ranks), 'c');
        wanted[static_cast<std::size_t>(plan.rank_of(plan.stages() - 1, 2))] = 'b';
        CHECK(found.all() == wanted);
      }
}

TEST_CASE("a rank that dies in the middle of a step, by something that is no exception or without a word") {
  for (bool const silent : {false, true})
    for (mo::schedule const& made : plans_of_interest(3))
      for (int dies = 0; dies < 3; ++dies) {
        mo::schedule_view const plan = made;
        INFO(std::string(plan.name()) << ", rank " << dies << (silent ? " ends" : " throws"));
        findings found(3);
        auto const run = [&] {
          mo::run<spread>(
              [&](mo::context<spread>& ctx) {
                int const rank = ctx.pipeline().rank();
                rank_of_plan mine(ctx, plan, [&](mo::action const& a) {
                  if (rank == dies && a.microbatch == 1) throw 17;
                });
                try {
                  mine.step();
                  found.set(rank, 'd');
                } catch (int) {
                  found.set(rank, 'i');
                  if (!silent) throw;
                } catch (mo::comm_error const& e) {
                  found.set(rank, e.fault == mo::comm_fault::remote || e.fault == mo::comm_fault::aborted ? 'r' : 'o');
                  throw;
                }
              },
              {.deadline = 60s}, {.pipeline = 3});
        };
        CHECK((silent ? throws<mo::comm_error>(run) : throws<int>(run)));
        std::string wanted = "rrr";
        wanted[static_cast<std::size_t>(dies)] = 'i';
        CHECK(found.all() == wanted);
      }
}

TEST_CASE("another number of micro-batches on one rank") {
  auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 3, .microbatches = 4});
  for (int const wrong : {0, 1, 2})
    for (int const count : {0, 3, 5}) {
      CAPTURE(wrong);
      CAPTURE(count);
      findings found(3);
      auto const run = [&] {
        mo::run<spread>(
            [&](mo::context<spread>& ctx) {
              int const rank = ctx.pipeline().rank();
              rank_of_plan mine(ctx, plan);
              std::vector<std::int64_t> const sizes(static_cast<std::size_t>(rank == wrong ? count : 4),
                                                    linear::tokens);
              try {
                mine.step(mo::microbatches(sizes), linear::fill);
              } catch (mo::config_error const&) {
                found.set(rank, 'f');
                throw;
              }
            },
            {.deadline = 60s}, {.pipeline = 3});
      };
      CHECK(throws<mo::config_error>(run));
      CHECK(found.all() == "fff");
    }
}

TEST_CASE("receiving has a deadline, in evaluation too") {
  for (bool const trains : {true, false}) {
    std::atomic<bool> failed{false};
    findings found(2);
    auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 4});
    CHECK(throws<mo::comm_error>([&] {
      mo::run<spread>(
          [&](mo::context<spread>& ctx) {
            int const rank = ctx.pipeline().rank();
            linear::stage stage(plan, rank);
            mo::pipeline_engine engine{ctx, plan, stage};
            linear::matrices const weights = linear::weights_of(2);
            linear::matrices gradients = linear::zeros(2);
            auto const late = [&](int m, auto x) {
              linear::fill(m, x);
              for (; m == 2 && !failed; set_clock::seconds += 31) std::this_thread::yield();
            };
            try {
              if (trains)
                engine.step(weights, gradients, mo::equal_batches(4, linear::tokens), late,
                            [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
              else
                engine.evaluate(weights, mo::equal_batches(4, linear::tokens), late,
                                [](int, auto) { return mo::task_loss{}; });
            } catch (mo::comm_error const& e) {
              found.set(rank, e.fault == mo::comm_fault::timeout ? 't' : 'c');
              failed = true;
              throw;
            }
          },
          {.deadline = 30s, .now = &set_clock::now}, {.pipeline = 2});
    }));
    CHECK(found.all()[1] == 't');
    CHECK(found.all()[0] != '-');
  }
}

TEST_CASE("plans without a backward, with two, or with one ahead of its forward are refused before a step") {
  using mo::computation;
  mo::action const f{0, 0, computation::forward}, b{0, 0, computation::backward}, i{0, 0, computation::input_gradient};
  auto const refused = [](std::vector<mo::action> const& actions) -> std::string {
    mo::schedule const plan("own", {.ranks = 1, .microbatches = 1}, {0}, false, {actions});
    std::string words = "accepted";
    mo::run<spread>(
        [&](mo::context<spread>& ctx) {
          linear::stage stage(plan, 0);
          try {
            mo::pipeline_engine engine{ctx, plan, stage};
          } catch (mo::schedule_error const& e) {
            words = e.what();
          }
        },
        {}, mo::layout{});
    return words;
  };
  CHECK(refused({f, b}) == "accepted");
  struct flawed {
    std::vector<mo::action> actions;
    std::string words;
  };
  for (flawed const& one : {flawed{{f}, "0B0 on rank 0, position 1, is missing."},
                            {{f, i}, "0W0 on rank 0, position 2, is missing."},
                            {{f, b, b}, "0B0 on rank 0, position 2, is there twice."},
                            {{b, f}, "0B0 on rank 0, position 0, comes before its own forward has ended."},
                            {{f, f, b}, "0F0 on rank 0, position 1, is there twice."}}) {
    std::string const words = refused(one.actions);
    CHECK(words.substr(0, words.find('\n')) == "own: " + one.words);
  }
}

TEST_CASE("a step within a step is refused, and the step that is going on is not disturbed") {
  auto const plan = mo::make_schedule(mo::zb_v{}, {.ranks = 1, .chunks = 2, .microbatches = 4});
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        rank_of_plan mine(ctx, plan);
        int refused = 0;
        mine.step(mo::equal_batches(4, linear::tokens), [&](int m, auto x) {
          linear::fill(m, x);
          refused += throws<mo::state_error>([&] { mine.step(); });
          refused += throws<mo::state_error>([&] { mine.evaluate(); });
        });
        CHECK(refused == 8);
        CHECK(linear::outcome{mine.engine.task(), mine.gradients} == linear::expected(2, 4));
        mine.gradients = linear::zeros(2);
        mine.step();
        CHECK(linear::outcome{mine.engine.task(), mine.gradients} == linear::expected(2, 4));
      },
      {}, mo::layout{});
}

TEST_CASE("a smaller last micro-batch weighs what it has: sums over sums, not a mean of means") {
  auto const of = [](mo::schedule_view const& plan, std::vector<std::int64_t> const& sizes) {
    linear::outcome out{{}, linear::zeros(2)};
    out.task = mo::run<spread>(
        [&](mo::context<spread>& ctx) {
          linear::stage stage(plan, ctx.pipeline().rank());
          mo::pipeline_engine engine{ctx, plan, stage};
          mo::microbatches const batches{sizes};
          engine.step(
              linear::weights_of(2), out.gradients, batches,
              [&](int m, auto x) {
                for (std::int64_t t = 0; t < x.rows(); ++t)
                  for (std::int64_t h = 0; h < x.cols(); ++h)
                    x(t, h) = static_cast<double>((5 * (batches.before(m) + t) + 3 * h) % 7 - 3);
              },
              [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
          return engine.task();
        },
        {}, {.pipeline = plan.ranks()});
    return out;
  };
  auto const plan = [](int microbatches) {
    return mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = microbatches});
  };
  auto const whole = of(plan(1), {13}), parts = of(plan(4), {4, 4, 4, 1});
  CHECK(parts == whole);
  CHECK(whole.task.weight == 13);
  double means = 0, first = 0;
  for (std::int64_t const n : {4, 8, 12, 13}) {
    auto const until = of(plan(1), {n}).task;
    means += (until.sum - first) / static_cast<double>(n == 13 ? 1 : 4) / 4, first = until.sum;
  }
  CHECK(std::abs(means - whole.task.sum / whole.task.weight) > 1e-3);
}

namespace {

struct block : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 5, .experts = 4}> {
  using router = mo::router<mo::jitter<std::ratio<1, 10>>, mo::logit_noise, mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};
using stack = mo::moe_stack<block, spread>;

template <class Tensors> std::vector<double> values_of(Tensors& tensors) {
  std::vector<double> all;
  tensors.for_each([&](mo::parameter const&, auto values) { all.insert(all.end(), values.begin(), values.end()); });
  return all;
}

/// Trains three steps, the second of which fails at an action of micro-batch 2 and is then repeated, if it can be.
struct trained {
  std::vector<double> weights, losses;
};

trained train(mo::context<spread>& ctx, mo::schedule_view const& plan, mo::placement where, bool fails) {
  stack stage{ctx,
              mo::split_layers(std::vector<int>(4, 1), plan.stages()),
              {.losses = {mo::load_balance<>{.coefficient = 0.1f}}},
              where};
  auto weights = stage.make_weights(mo::seed{3});
  auto gradients = stage.make_gradients();
  mo::pipeline_engine engine{ctx, plan, stage};
  mo::adamw<double> optimiser{{.weight_decay = 0.1}};
  auto const parameters = [&](auto const& f) {
    std::vector<mo::trained_tensor<double>> all;
    weights.for_each([&](mo::parameter const& p, std::span<double> values) { all.push_back({p.name, values, {}}); });
    std::size_t i = 0;
    gradients.for_each([&](mo::parameter const&, std::span<double> values) { all[i++].gradients = values; });
    for (auto const& t : all) f(t);
  };
  auto const states = [&] {
    std::vector<double> all;
    optimiser.for_each_state([&](auto const& s) { all.insert(all.end(), s.values.begin(), s.values.end()); });
    return all;
  };
  trained out;
  for (int n = 0; n < 3; ++n) {
    bool breaks = fails && n == 1;
    auto const step = [&] {
      gradients.reset();
      out.losses.push_back(engine
                               .step(
                                   weights, gradients, mo::equal_batches(4, 8),
                                   [&](int m, auto x) {
                                     if (breaks && m == 2) throw broken("no more inputs");
                                     mo::fill_normal(ctx, x, mo::seed{100}, mo::first_row{8 * m});
                                   },
                                   [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, n)
                               .total());
      out.losses.push_back(engine.task().sum);
    };
    auto const before = std::pair(values_of(weights), states());
    try {
      step();
    } catch (...) {
      if (before != std::pair(values_of(weights), states()))
        throw mo::state_error("a failed step has changed something.");
      if (ctx.pipeline().size() > 1) throw;
      breaks = false;
      step();
    }
    optimiser.step(parameters, 1e-2, 1);
  }
  out.weights = values_of(weights);
  return out;
}

}  // namespace

TEST_CASE("a failed step leaves weights, optimiser and random numbers as they were, and can be repeated") {
  auto const plan = mo::make_schedule(mo::zb_v{}, {.ranks = 1, .chunks = 2, .microbatches = 4});
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        trained const once = train(ctx, plan, mo::placement::v, false),
                      again = train(ctx, plan, mo::placement::v, true);
        CHECK(again.weights == once.weights);
        CHECK(again.losses == once.losses);
        CHECK(once.losses[0] != once.losses[2]);
      },
      {}, mo::layout{});
  auto const two = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 4});
  CHECK(throws<broken>([&] {
    mo::run<spread>([&](mo::context<spread>& ctx) { train(ctx, two, mo::placement::loop, true); }, {.deadline = 60s},
                    {.pipeline = 2});
  }));
}
