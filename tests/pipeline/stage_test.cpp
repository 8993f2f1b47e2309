// SPDX-License-Identifier: Apache-2.0
// A user's own stage in the engine: what it is asked to do, in which order, and what it may rely on.
#include <moiety/pipeline/stage.hpp>

#include "pipeline/linear_stage.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using balance = mo::load_balance<mo::over::sequence>;

struct counted : mo::layer_spec<mo::dims{.hidden = 3, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<balance>;
};

/// Unweighted balance losses of two replicas, two micro-batches, four layers.
constexpr double value[2][2][4] = {{{1.10, 1.20, 1.30, 1.40}, {1.15, 1.25, 1.35, 1.45}},
                                   {{1.05, 1.10, 1.15, 1.20}, {1.00, 1.05, 1.10, 1.15}}};

/// A stage whose layers have those losses.
struct stage_of_numbers : linear::stage {
  using spec = counted;
  stage_of_numbers(mo::schedule_view const& plan, int rank, int replica, mo::layer_split<std::vector<int>> const& split)
      : stage(plan, rank), replica_(replica), split_(&split) {}
  int layers() const { return split_->blocks(); }
  void record(tape_type const& tape, mo::loss_ledger<spec>& ledger) const {
    for (int l = split_->first(tape.stage); l < split_->first(tape.stage + 1); ++l) {
      mo::layer_record<spec> entry;
      int const m = tape.microbatch / 2;  // first rows count the tokens of both replicas
      entry.add<balance>(1, value[replica_][m][l], 0.01 / 4);
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

linear::outcome step(mo::schedule_view const& plan, std::vector<seen>& of) {
  linear::matrices const weights = linear::weights_of(plan.stages());
  linear::outcome out{{}, linear::zeros(plan.stages())};
  of.resize(static_cast<std::size_t>(plan.ranks()));
  out.task = mo::run<linear::spread>(
      [&](mo::context<linear::spread>& ctx) {
        int const rank = ctx.pipeline().rank();
        seen& mine = of[static_cast<std::size_t>(rank)];
        std::ostringstream text;
        linear::stage stage(plan, rank, [&](mo::action const& a) { text << a << ' '; });
        mo::pipeline_engine engine{ctx, plan, stage};
        static_assert(std::is_void_v<decltype(engine.step(weights, out.gradients, mo::equal_batches(1, 1), linear::fill,
                                                          [](int, auto, auto) { return mo::task_loss{}; }))>);
        engine.step(weights, out.gradients, mo::equal_batches(plan.microbatches(), linear::tokens), linear::fill,
                    [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
        mine = {text.str(), stage.peak(), stage.live(), stage.kept()};
        return engine.task();
      },
      {}, {.pipeline = plan.ranks()});
  return out;
}

}  // namespace

TEST_CASE("every order does what it planned, holds what it planned, and computes the same") {
  int plans = 0;
  for (int const ranks : {1, 2, 4})
    linear::for_each_plan(ranks, 8, [&](auto const& order, mo::schedule_view const& plan) {
      CAPTURE(ranks);
      INFO(std::string(order.name) << ", " << plan.stages() << " stages");
      std::vector<seen> all;
      CHECK(step(plan, all) == linear::expected(plan.stages(), 8));
      for (int r = 0; r < ranks; ++r) {
        CAPTURE(r);
        seen const& one = all[static_cast<std::size_t>(r)];
        CHECK(one.actions == planned(plan, r));
        CHECK(one.peak == mo::peak_activations(plan, r));
        CHECK(one.live == 0);
        CHECK(one.kept);
      }
      ++plans;
    });
  CHECK(plans >= 30);
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
            for (double const wrong : {.00631250, .00556250, .00593750, .02375000, .01275000})
              right = right && std::abs(report.total() - wrong) > 1e-4;
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
