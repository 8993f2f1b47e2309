// SPDX-License-Identifier: Apache-2.0
// A user's own stage in the engine: what it is asked to do, in which order, and what it may rely on.
#include <moiety/pipeline/stage.hpp>

#include "pipeline/linear_stage.hpp"
#include "pipeline/worked_example.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using linear::spread;

using balance = mo::load_balance<mo::over::sequence>;

struct counted : mo::layer_spec<mo::dims{.hidden = 3, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<balance>;
};

/// A stage whose layers have the losses of the worked example.
struct stage_of_numbers : linear::stage {
  using spec = counted;
  stage_of_numbers(mo::schedule_view const& plan, int rank, int replica, mo::layer_split<std::vector<int>> const& split)
      : stage(plan, rank), replica_(replica), split_(&split) {}
  int layers() const { return split_->blocks(); }
  void record(tape_type const& tape, mo::loss_ledger<spec>& ledger) const {
    for (int l = split_->first(tape.stage); l < split_->first(tape.stage + 1); ++l) {
      mo::layer_record<spec> entry;
      int const m = tape.microbatch / 2;  // first rows count the tokens of both replicas
      entry.add<balance>(1, worked::given[replica_][m][l], 0.01 / 4);
      ledger.record(l, entry);
    }
  }

 private:
  int replica_;
  mo::layer_split<std::vector<int>> const* split_;
};

struct forgets_to_record : linear::stage {
  using spec = counted;
};
struct without_backward {
  using element = double;
  using weights_type = int;
  using gradients_type = int;
  using tape_type = int;
  int width() const { return 1; }
  int chunks() const { return 1; }
  int stage_of(int) const { return 0; }
};

/// A small language model of one block a stage: an embedding that reads ids, and a head of another width. Its ledger counts.
class words {
 public:
  using element = double;
  using weights_type = std::vector<double>;    // embedding [5 × 3], head [3 × 4]
  using gradients_type = std::vector<double>;  // of the same
  struct tape_type {
    int stage;
    std::vector<std::int32_t> ids;
    mo::matrix_view<double const> x, dy;
  };

  /// Counts forwards, as a report does over all ranks of the pipeline.
  struct ledger {
    mo::thread_communicator* ranks;
    std::int64_t forwards = 0;
    std::int64_t reduce() {
      ranks->all_reduce(std::span(&forwards, 1));
      return forwards;
    }
  };

  words(mo::schedule_view const& plan, int rank) {
    for (int s = 0; s < 2; ++s)
      if (plan.rank_of(s, 0) == rank) stages_.push_back(s);
  }
  std::int64_t width() const { return 3; }
  std::int64_t input_width() const { return 0; }
  std::int64_t output_width() const { return 4; }
  int chunks() const { return static_cast<int>(stages_.size()); }
  int stage_of(int chunk) const { return stages_[static_cast<std::size_t>(chunk)]; }
  ledger make_ledger(mo::context<spread>& ctx) const { return {&ctx.pipeline()}; }
  void record(tape_type const&, ledger& to) const { ++to.forwards; }

  tape_type forward(weights_type const& weights, int chunk, mo::matrix_view<double const> x, mo::matrix_view<double> y,
                    mo::batch const& about) const {
    infer(weights, chunk, x, y, about);
    return {stage_of(chunk), {about.ids.begin(), about.ids.end()}, x, {}};
  }
  void infer(weights_type const& weights, int chunk, mo::matrix_view<double const> x, mo::matrix_view<double> y,
             mo::batch const& about) const {
    if (x.cols() != (stage_of(chunk) == 0 ? 0 : 3) || y.cols() != (stage_of(chunk) == 0 ? 3 : 4))
      throw mo::state_error("rows have another width.");
    for (std::int64_t t = 0; t < y.rows(); ++t)
      for (std::int64_t j = 0; j < y.cols(); ++j) {
        if (stage_of(chunk) == 0)
          y(t, j) = weights[at(0, about.ids[static_cast<std::size_t>(t)], j)];
        else
          for (std::int64_t i = 0; i < 3; ++i) y(t, j) += x(t, i) * weights[at(1, i, j)];
      }
  }
  void backward_input(weights_type const& weights, tape_type& tape, mo::matrix_view<double const> dy,
                      mo::matrix_view<double> dx) const {
    tape.dy = dy;
    if (dx.cols() != (tape.stage == 0 ? 0 : 3)) throw mo::state_error("dx has another width.");
    for (std::int64_t t = 0; t < dx.rows(); ++t)
      for (std::int64_t i = 0; i < dx.cols(); ++i)
        for (std::int64_t j = 0; j < 4; ++j) dx(t, i) += dy(t, j) * weights[at(1, i, j)];
  }
  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    for (std::int64_t t = 0; t < tape.dy.rows(); ++t)
      for (std::int64_t j = 0; j < tape.dy.cols(); ++j) {
        if (tape.stage == 0)
          gradients[at(0, tape.ids[static_cast<std::size_t>(t)], j)] += tape.dy(t, j);
        else
          for (std::int64_t i = 0; i < 3; ++i) gradients[at(1, i, j)] += tape.x(t, i) * tape.dy(t, j);
      }
  }

 private:
  static std::size_t at(int matrix, std::int64_t row, std::int64_t column) {
    return static_cast<std::size_t>(matrix == 0 ? row * 3 + column : 15 + row * 4 + column);
  }
  std::vector<int> stages_;
};

static_assert(mo::pipeline_stage<words> && !mo::records_losses<words>);
static_assert(mo::pipeline_stage<linear::stage> && !mo::records_losses<linear::stage>);
static_assert(mo::pipeline_stage<stage_of_numbers> && mo::records_losses<stage_of_numbers>);
static_assert(mo::pipeline_stage<forgets_to_record> && !mo::records_losses<forgets_to_record>);
static_assert(!mo::pipeline_stage<without_backward> && !mo::pipeline_stage<int>);

/// What one rank saw.
struct seen {
  std::string actions;
  std::int64_t peak = 0, live = 0;
  bool kept = false;
};

/// The actions of a rank, a whole backward as its two halves.
std::string planned(mo::schedule_view const& plan, int rank) {
  std::ostringstream text;
  for (mo::action a : plan.rank(rank))
    if (a.type == mo::computation::backward) {
      a.type = mo::computation::input_gradient;
      text << a << ' ';
      a.type = mo::computation::weight_gradient;
      text << a << ' ';
    } else {
      text << a << ' ';
    }
  return text.str();
}

/// A step; both copies of a stage must have the same gradients.
linear::outcome step(mo::schedule_view const& plan, std::vector<seen>& of, linear::matrices const& weights) {
  linear::outcome out{{}, linear::zeros(plan.stages())};
  std::vector<linear::matrices> gradients(static_cast<std::size_t>(plan.ranks()), out.gradients);
  of.resize(gradients.size());
  out.task = mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        auto const rank = static_cast<std::size_t>(ctx.pipeline().rank());
        std::ostringstream text;
        mo::task_loss task;
        auto const body = [&](auto& stage) {
          mo::pipeline_engine engine{ctx, plan, stage};
          auto const once = [&] {
            return engine.step(weights, gradients[rank], mo::equal_batches(plan.microbatches(), linear::tokens),
                               linear::fill, [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
          };
          static_assert(std::is_void_v<decltype(once())>);
          once();
          task = engine.task();
          mo::matrix<double> unused(linear::tokens, linear::width);
          std::string const trained = text.str();
          if (!(task == engine.evaluate(weights, mo::equal_batches(plan.microbatches(), linear::tokens), linear::fill,
                                        [&](int, auto y) { return mo::square_error(ctx, y, unused.view()); })))
            throw mo::state_error("evaluation found another loss.");
          of[rank] = {trained, stage.peak(), stage.live(), stage.kept()};
        };
        linear::with_stage(
            plan, ctx, [&](mo::action const& a) { text << a << ' '; }, body);
        return task;
      },
      {}, {.pipeline = plan.ranks()});
  for (int s = 0; s < plan.stages(); ++s) {
    auto const at = [&](int microbatch) {
      return gradients[static_cast<std::size_t>(plan.rank_of(s, microbatch))][static_cast<std::size_t>(s)];
    };
    CHECK(at(0) == at(plan.microbatches() - 1));
    out.gradients[static_cast<std::size_t>(s)] = at(0);
  }
  return out;
}
linear::outcome step(mo::schedule_view const& plan, std::vector<seen>& of) {
  return step(plan, of, linear::weights_of(plan.stages()));
}

/// A plan does what it says, holds what it says, and computes what a step is.
void check(mo::schedule_view const& plan) {
  INFO(std::string(plan.name()) << ", " << plan.stages() << " stages on " << plan.ranks());
  std::vector<seen> all;
  CHECK(step(plan, all) == linear::expected(plan.stages(), plan.microbatches()));
  for (int r = 0; r < plan.ranks(); ++r) {
    CAPTURE(r);
    seen const& one = all[static_cast<std::size_t>(r)];
    CHECK(one.actions == planned(plan, r));
    CHECK(one.peak == mo::peak_activations(plan, r));
    CHECK(one.live == 0);
    CHECK(one.kept);
  }
}

}  // namespace

TEST_CASE("every order does what it planned, holds what it planned, and computes the same") {
  int plans = 0, copied = 0;
  for (int const ranks : {1, 2, 4})
    linear::for_each_order(ranks, 8, [&](auto const&, mo::schedule_view const& plan) {
      check(plan);
      ++plans, copied += plan.bidirectional();
    });
  CHECK(plans == 39);
  CHECK(copied == 2);
}

TEST_CASE("so does a plan that is nobody's order") {
  using mo::computation;
  constexpr auto f = computation::forward, b = computation::backward, i = computation::input_gradient,
                 w = computation::weight_gradient;
  // Rows of micro-batch 0 come first, and are used last.
  check(mo::schedule("overtaking", {.ranks = 2, .microbatches = 2}, {0, 1}, false,
                     {{{0, 0, f}, {0, 1, f}, {0, 1, b}, {0, 0, b}}, {{1, 1, f}, {1, 1, b}, {1, 0, f}, {1, 0, b}}}));
  check(mo::schedule("last rank first", {.ranks = 2, .microbatches = 2}, {1, 0}, false,
                     {{{1, 0, f}, {1, 0, b}, {1, 1, f}, {1, 1, b}}, {{0, 0, f}, {0, 1, f}, {0, 0, b}, {0, 1, b}}}));
  check(
      mo::schedule("an inner pair", {.ranks = 2, .chunks = 2, .microbatches = 2}, {1, 0, 0, 1}, false,
                   {{{1, 0, f}, {2, 0, f}, {1, 1, f}, {2, 1, f}, {2, 1, i}, {1, 1, b}, {2, 0, b}, {1, 0, b}, {2, 1, w}},
                    {{0, 0, f},
                     {0, 1, f},
                     {3, 0, f},
                     {3, 1, f},
                     {3, 1, i},
                     {3, 0, i},
                     {3, 0, w},
                     {3, 1, w},
                     {0, 1, b},
                     {0, 0, b}}}));
  check(mo::schedule("three stages on two ranks", {.ranks = 2, .microbatches = 2}, {0, 1, 0}, false,
                     {{{0, 0, f}, {0, 1, f}, {2, 0, f}, {2, 0, b}, {2, 1, f}, {2, 1, b}, {0, 0, b}, {0, 1, b}},
                      {{1, 0, f}, {1, 1, f}, {1, 0, b}, {1, 1, b}}}));
}

TEST_CASE("two copies of a stage: losses to the bit, gradients to rounding") {
  for (int const ranks : {2, 4})
    for (int const microbatches : {8, 14}) {
      CAPTURE(ranks);
      linear::matrices weights = linear::zeros(ranks);
      for (std::size_t s = 0; s < weights.size(); ++s)
        for (std::size_t i = 0; i < weights[s].size(); ++i)
          weights[s][i] = std::sin(static_cast<double>(11 * s + 3 * i + 1)) / 2;
      std::vector<seen> all;
      auto const one =
          step(mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 1, .chunks = ranks, .microbatches = microbatches}),
               all, weights);
      auto const two =
          step(mo::make_schedule(mo::dual_pipe{}, {.ranks = ranks, .chunks = 2, .microbatches = microbatches}), all,
               weights);
      CHECK(two.task == one.task);
      int other = 0;
      for (std::size_t s = 0; s < weights.size(); ++s) {
        double error = 0, norm = 0;
        for (std::size_t i = 0; i < weights[s].size(); ++i) {
          double const was = one.gradients[s][i], is = two.gradients[s][i];
          error += (is - was) * (is - was), norm += was * was, other += is != was;
        }
        double const addends = microbatches * static_cast<double>(linear::tokens);
        CHECK(std::sqrt(error / norm) < 4 * 0x1p-53 * std::sqrt(addends));
      }
      CHECK(other > 0);  // else these numbers show nothing
    }
}

TEST_CASE("a model without unite is refused two copies of its stages") {
  mo::schedule const plan = mo::make_schedule(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  CHECK_THROWS_WITH_AS(mo::run<spread>(
                           [&](mo::context<spread>& ctx) {
                             linear::stage stage(plan, ctx.pipeline().rank());
                             mo::pipeline_engine engine{ctx, plan, stage};
                           },
                           {}, {.pipeline = 2}),
                       "a bidirectional schedule keeps two copies of each stage: it needs a model that has "
                       "unite(gradients).",
                       mo::config_error);
}

TEST_CASE("the gradient of the linear stages is that of the loss") {
  auto const loss = [](linear::matrices const& weights) {
    mo::context<> ctx;
    double sum = 0;
    mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 1});
    for (int m = 0; m < 3; ++m) {
      mo::matrix<double> x(linear::tokens, linear::width), y(linear::tokens, linear::width);
      linear::fill(m, x.view());
      linear::stage(plan, 0).infer(weights, 0, x.view(), y.view(), {});
      linear::stage(plan, 1).infer(weights, 0, std::as_const(y).view(), x.view(), {});
      sum += mo::square_error(ctx, x.view(), y.view()).sum;
    }
    return sum;
  };
  std::vector<seen> all;
  auto const found = step(mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 3}), all);
  linear::matrices weights = linear::weights_of(2);
  CHECK(found.task.sum == loss(weights));
  CHECK(found.task.weight == 3 * linear::tokens);
  for (std::size_t s = 0; s < 2; ++s)
    for (std::size_t i = 0; i < weights[s].size(); ++i) {
      double const at = weights[s][i], by = 1e-4;
      weights[s][i] = at + by;
      double const up = loss(weights);
      weights[s][i] = at - by;
      double const down = loss(weights);
      weights[s][i] = at;
      CHECK(std::abs((up - down) / (2 * by) - found.gradients[s][i]) < 1e-5 * (1 + std::abs(found.gradients[s][i])));
    }
}

TEST_CASE("the worked example: losses of all stages, replicas and micro-batches are in every rank's report once") {
  struct cut {
    int ranks;
    std::vector<int> layers;
  };
  for (cut const& c : {cut{1, {4}}, {2, {2, 2}}, {4, {1, 1, 1, 1}}, {2, {4, 0}}, {4, {0, 3, 0, 1}}})
    for (mo::schedule const& plan : {mo::make_schedule(mo::gpipe{}, {.ranks = c.ranks, .microbatches = 2}),
                                     mo::make_schedule(mo::one_f_one_b{}, {.ranks = c.ranks, .microbatches = 2})}) {
      CAPTURE(c.ranks);
      auto const split = mo::split_by_counts(c.layers, 4);
      mo::run<linear::spread>(
          [&](mo::context<linear::spread>& ctx) {
            stage_of_numbers stage(plan, ctx.pipeline().rank(), ctx.data().rank(), split);
            mo::pipeline_engine engine{ctx, plan, stage};
            linear::matrices const weights = linear::weights_of(c.ranks);
            linear::matrices gradients = linear::zeros(c.ranks);
            mo::loss_report<counted> const report =
                engine.step(weights, gradients, mo::equal_batches(2, linear::tokens), linear::fill,
                            [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
            double const layers[4] = {1.075, 1.15, 1.225, 1.3};
            bool right = report.layers() == 4 && std::abs(report.total() - .011875) < 1e-12 &&
                         std::abs(report.value<balance>() - 1.1875) < 1e-12;
            for (std::size_t l = 0; l < 4; ++l)
              right = right && std::abs(report.per_layer<balance>()[l] - layers[l]) < 1e-12;
            if (!right) throw mo::state_error("the report is another one.");
          },
          {}, {.data = 2, .pipeline = c.ranks});
    }
}

TEST_CASE("first rows are those of the whole batch") {
  mo::schedule const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 3});
  struct watching : linear::stage {
    using stage::stage;
    std::vector<std::int64_t>* rows = nullptr;
    tape_type forward(linear::matrices const& weights, int chunk, mo::matrix_view<double const> x,
                      mo::matrix_view<double> y, mo::batch const& about) const {
      rows->push_back(about.first_row), rows->push_back(about.step);
      return stage::forward(weights, chunk, x, y, about);
    }
  };
  std::vector<std::vector<std::int64_t>> all(4);
  mo::run<linear::spread>(
      [&](mo::context<linear::spread>& ctx) {
        watching stage(plan, ctx.pipeline().rank());
        stage.rows = &all[static_cast<std::size_t>(ctx.world().rank())];
        mo::pipeline_engine engine{ctx, plan, stage};
        linear::matrices const weights = linear::weights_of(2);
        linear::matrices gradients = linear::zeros(2);
        mo::microbatches const mine =
            ctx.data().rank() == 0 ? mo::microbatches{{2, 0, 3}} : mo::microbatches{{1, 4, 0}};
        engine.step(
            weights, gradients, mine, linear::fill, [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); },
            9);
      },
      {}, {.data = 2, .pipeline = 2});
  using rows = std::vector<std::int64_t>;
  CHECK(all == std::vector<rows>{{0, 9, 3, 9, 7, 9}, {2, 9, 3, 9, 10, 9}, {0, 9, 3, 9, 7, 9}, {2, 9, 3, 9, 10, 9}});
}

TEST_CASE("a model that reads ids takes no inputs, ends in another width, and has a ledger of its own") {
  constexpr int count = 4, size = 6;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < count * size; ++i) ids.push_back(static_cast<std::int32_t>((7 * i + i / 5) % 5));
  std::vector<double> weights;
  for (int i = 0; i < 27; ++i) weights.push_back(std::sin(i + 1.0));
  auto batches = mo::equal_batches(count, size);
  batches.describe([&](int m) {
    return mo::batch{.ids = std::span(std::as_const(ids)).subspan(static_cast<std::size_t>(m * size), size)};
  });

  // One row of logits for each id: dE = dy Wᵀ, dW = xᵀ dy, with dy = 2 x W.
  std::vector<double> wanted(27);
  double sum = 0;
  for (std::int32_t const id : ids) {
    double const* const x = weights.data() + id * 3;
    double y[4] = {};
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 3; ++i) y[j] += x[i] * weights[static_cast<std::size_t>(15 + i * 4 + j)];
    for (int j = 0; j < 4; ++j) sum += y[j] * y[j];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 4; ++j) {
        wanted[static_cast<std::size_t>(id * 3 + i)] += 2 * y[j] * weights[static_cast<std::size_t>(15 + i * 4 + j)];
        wanted[static_cast<std::size_t>(15 + i * 4 + j)] += x[i] * 2 * y[j];
      }
  }

  std::vector<double> on_one_rank;
  for (int const ranks : {1, 2}) {
    CAPTURE(ranks);
    mo::schedule const plan = ranks == 1
                                  ? mo::make_schedule(mo::zb_v{}, {.ranks = 1, .chunks = 2, .microbatches = count})
                                  : mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = count});
    std::vector<double> gradients(27);
    auto const task = mo::run<spread>(
        [&](mo::context<spread>& ctx) {
          words stage(plan, ctx.pipeline().rank());
          mo::pipeline_engine engine{ctx, plan, stage};
          std::int64_t const forwards = engine.step(weights, gradients, batches, mo::no_inputs,
                                                    [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
          if (forwards != 2 * count) throw mo::state_error("the ledger counted something else.");
          mo::task_loss const trained = engine.task();
          mo::matrix<double> unused(size, 4);
          mo::task_loss const measured = engine.evaluate(
              weights, batches, mo::no_inputs, [&](int, auto y) { return mo::square_error(ctx, y, unused.view()); });
          if (!(trained == measured)) throw mo::state_error("evaluation found another loss.");
          return trained;
        },
        {}, {.pipeline = ranks});
    CHECK(std::abs(task.sum - sum) < 1e-13 * sum);
    CHECK(task.weight == count * size);
    for (std::size_t i = 0; i < 27; ++i) CHECK(std::abs(gradients[i] - wanted[i]) < 1e-13 * (1 + std::abs(wanted[i])));
    if (ranks == 1) on_one_rank = gradients;
    CHECK(gradients == on_one_rank);
  }
}

TEST_CASE("no_inputs is refused by a stage that takes some") {
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 1, .microbatches = 2});
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        linear::stage stage(plan, 0);
        mo::pipeline_engine engine{ctx, plan, stage};
        linear::matrices const weights = linear::weights_of(1);
        linear::matrices gradients = linear::zeros(1);
        CHECK_THROWS_WITH_AS(engine.step(weights, gradients, mo::equal_batches(2, 2), mo::no_inputs,
                                         [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }),
                             "the first stage takes an input, but the step was given mo::no_inputs.", mo::config_error);
      },
      {}, mo::layout{});
}

TEST_CASE("a send does not hold up what follows, nor what is not needed yet") {
  // Stage 1 begins micro-batch 0 only when stage 0 has begun the last one, and so has sent all others.
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 6});
  std::atomic<int> begun{0};
  linear::outcome out{{}, linear::zeros(2)};
  out.task = mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        linear::stage stage(plan, ctx.pipeline().rank(), [&](mo::action const& a) {
          if (a.stage == 0) ++begun;
          if (a == mo::action{1, 0, mo::computation::forward})
            while (begun < 6) std::this_thread::yield();
        });
        mo::pipeline_engine engine{ctx, plan, stage};
        linear::matrices const weights = linear::weights_of(2);
        engine.step(weights, out.gradients, mo::equal_batches(6, linear::tokens), linear::fill,
                    [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
        return engine.task();
      },
      {.deadline = std::chrono::seconds(20)}, {.pipeline = 2});
  CHECK(out == linear::expected(2, 6));
}
