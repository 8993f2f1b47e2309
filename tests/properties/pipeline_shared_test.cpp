// SPDX-License-Identifier: Apache-2.0
// Parameters that several places of a pipeline hold: the matrix of an embedding that is the head's too, and both copies of a
// stage under a bidirectional order. All holders end a step with the gradient of the whole, and the norm counts it once.
#include "pipeline/linear_stage.hpp"
#include "pipeline/mixed_model.hpp"
#include "properties/ranks.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace mixed;

constexpr int count = 8;
std::vector<std::int64_t> const tokens{5, 0, 8, 3, 1, 4, 6, 2};
constexpr std::string_view tied_kinds = "tdwndWnu";

struct outcome {
  std::vector<values> gradients;  // by rank of the pipeline, those of one name one behind another
  double norm = 0, losses = 0;
  std::vector<std::int64_t> loads;
  mo::task_loss task, evaluated;
};

struct how {
  std::string_view kinds = tied_kinds;
  mo::layout mesh{};   // of a stage; its gradients are summed over these ranks
  int stage_rank = 0;  // whose gradients are kept
  int steps = 1;
  bool reset = false;  // between steps
  std::size_t moved = 0;
  double by = 0;  // what is added to the element `moved` of the table
};

template <class Order> outcome run(Order const&, mo::schedule_view const& plan, how const& h = {}) {
  outcome out;
  out.gradients.resize(static_cast<std::size_t>(plan.ranks()));
  auto const split = mo::split_layers(std::vector<int>(h.kinds.size(), 1), plan.stages());
  mo::layout mesh = h.mesh;
  mesh.pipeline = plan.ranks();
  std::mutex mutex;
  mo::run<spread>(
      [&](context& ctx) {
        model stage{ctx, split, build(ctx, h.kinds), Order::placed};
        auto weights = stage.make_weights(mo::seed{3});
        weights.for_each([&](mo::parameter const& p, auto v) {
          if (p.name == "table") v[h.moved] += h.by;
        });
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        std::vector<std::vector<std::int32_t>> words;
        std::vector<std::int64_t> mine;
        for (std::size_t m = 0; m < tokens.size(); ++m) {
          auto const all = ids(tokens[m], m);
          auto const part = mo::slice_of(tokens[m], ctx.stage().rank(), ctx.stage().size());
          words.emplace_back(all.begin() + part.first, all.begin() + part.first + part.count);
          mine.push_back(part.count);
        }
        auto const batches = mo::microbatches{mine}.describe(
            [&](int m) { return mo::batch{.ids = words[static_cast<std::size_t>(m)]}; });
        for (int i = 0; i < h.steps; ++i) {
          if (h.reset) gradients.reset();
          auto const report = engine.step(
              weights, gradients, batches, mo::no_inputs,
              [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, 0);
          if (ctx.world().rank() != 0) continue;
          out.losses = report.total(), out.task = engine.task();
          out.loads.clear();
          auto const read = [&](auto const& losses) {
            for (std::size_t l = 0; l < losses.layers(); ++l)
              for (std::int64_t const load : losses.counts(l)) out.loads.push_back(load);
          };
          read(report.template of<noisy>()), read(report.template of<wide>());
        }
        auto const evaluated = engine.evaluate(weights, batches, mo::no_inputs, [&](int, auto y) {
          auto dy = ctx.matrix(y.rows(), y.cols());
          return mo::square_error(ctx, y, dy.view());
        });
        mo::reduce_gradients(mo::gradients_of<double>(mo::parameters_of(weights, gradients)), mo::groups_of(ctx));
        double const norm = mo::global_norm(ctx, gradients);
        std::scoped_lock const lock(mutex);
        if (ctx.world().rank() == 0) out.norm = norm, out.evaluated = evaluated;
        if (ctx.stage().rank() != h.stage_rank) return;
        gradients.for_each([&](mo::parameter const& p, auto v) {
          auto& all = out.gradients[static_cast<std::size_t>(ctx.pipeline().rank())][p.name];
          all.insert(all.end(), v.begin(), v.end());
        });
      },
      {}, mesh);
  return out;
}

mo::schedule plan_of(auto const& order, int ranks, int chunks = 1) {
  return mo::make_schedule(order, {.ranks = ranks, .chunks = chunks, .microbatches = count});
}
outcome one_stage(how const& h = {}) { return run(mo::gpipe{}, plan_of(mo::gpipe{}, 1), h); }

double norm_of(values const& all) {
  double sum = 0;
  for (auto const& [name, v] : all)
    for (double const g : v) sum += g * g;
  return std::sqrt(sum);
}

/// What two sums in other orders may differ by, of embedding and head together.
double const rounding = ranks::bound<double>(2 * std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}));

/// The same to rounding, or the same bits.
bool near(std::vector<double> const& a, std::vector<double> const& b, bool to_the_bit) {
  return to_the_bit ? ranks::same_bits(a, b) : ranks::distance(a, b) < rounding;
}

/// Everything but the table is on one rank only; every holder of the table has the sum.
void check_tied(outcome const& found, outcome const& one, bool to_the_bit) {
  auto const& whole = one.gradients[0];
  std::size_t const size = whole.at("table").size() / 2;
  std::vector<double> const table(whole.at("table").begin(),
                                  whole.at("table").begin() + static_cast<std::ptrdiff_t>(size));
  int holders = 0;
  std::size_t others = 0;
  for (auto const& of_rank : found.gradients)
    for (auto const& gradient : of_rank) {
      INFO(gradient.first);
      if (gradient.first != "table") {
        CHECK(near(gradient.second, whole.at(gradient.first), to_the_bit));
        ++others;
        continue;
      }
      for (auto at = gradient.second.begin(); at != gradient.second.end();
           at += static_cast<std::ptrdiff_t>(size), ++holders)
        CHECK(near({at, at + static_cast<std::ptrdiff_t>(size)}, table, to_the_bit));
    }
  CHECK(holders == 2);
  CHECK(others == whole.size() - 1);
  CHECK(found.losses == one.losses);
  CHECK(found.loads == one.loads);
  CHECK(found.task == one.task);
  if (to_the_bit) CHECK(found.norm == one.norm);
  CHECK(std::abs(found.norm / one.norm - 1) < rounding);
}

}  // namespace

TEST_CASE("an embedding's matrix that is the head's too, wherever the two are") {
  outcome const one = one_stage();
  auto counted = one.gradients[0];
  REQUIRE(counted.at("table").size() == 2 * vocabulary * hidden);
  counted.at("table").resize(vocabulary * hidden);
  CHECK(std::abs(one.norm / norm_of(counted) - 1) < rounding);
  CHECK(one.losses > 0);
  for (int const ranks : {1, 2, 4})
    linear::for_each_plan(ranks, count, [&](auto const& order, mo::schedule_view const& plan) {
      INFO(std::string(order.name) << " on " << ranks << " ranks, " << plan.stages() << " stages");
      check_tied(run(order, plan), one, order.gradients == mo::gradient_order::ascending);
    });
}

TEST_CASE("the same on several ranks of a stage, with experts on one and on two of them") {
  constexpr std::string_view of = "tdwWdwdu";  // no losses over the sequences of a rank
  outcome const alone = one_stage({.kinds = of});
  for (mo::layout const& mesh : {mo::layout{.data = 2}, {.data = 2, .expert = 2}})
    for (int const stage_rank : {0, 1}) {
      how const h{.kinds = of, .mesh = mesh, .stage_rank = stage_rank};
      outcome const one = one_stage(h);
      CHECK(near(one.gradients[0].at("table"), alone.gradients[0].at("table"), false));
      CHECK(std::abs(one.norm / alone.norm - 1) < rounding);
      CHECK(one.losses == alone.losses);
      auto const check = [&](auto const& order, mo::schedule_view const& plan) {
        INFO(mo::detail::sentence(mesh), ", ", std::string(order.name), ", ", plan.stages(), " stages");
        check_tied(run(order, plan, h), one, order.gradients == mo::gradient_order::ascending);
      };
      linear::for_each_plan(2, count, check);
      check(mo::one_f_one_b{}, plan_of(mo::one_f_one_b{}, 4));
    }
}

TEST_CASE("the gradient of a tied matrix is that of the loss") {
  how h{.kinds = "tddu"};
  auto const plan = plan_of(mo::one_f_one_b{}, 2);
  auto const table = run(mo::one_f_one_b{}, plan, h).gradients[1].at("table");
  for (std::size_t const i : {0u, 7u, 20u, 41u, 65u}) {
    h.moved = i, h.by = 1e-5;
    double const up = run(mo::one_f_one_b{}, plan, h).evaluated.sum;
    h.by = -1e-5;
    double const down = run(mo::one_f_one_b{}, plan, h).evaluated.sum;
    CHECK(std::abs((up - down) / 2e-5 - table[i]) < 1e-6 * (1 + std::abs(table[i])));
  }
}

TEST_CASE("two copies of each stage: both have the gradient of the whole, counted once") {
  for (std::string_view const of : {kinds, recomputing, tied_kinds}) {
    outcome const one = one_stage({.kinds = of});
    for (int const ranks : {2, 4}) {
      outcome const found = run(mo::dual_pipe{}, plan_of(mo::dual_pipe{}, ranks, 2), {.kinds = of});
      CHECK(found.losses == one.losses);
      CHECK(found.loads == one.loads);
      CHECK(found.task == one.task);
      CHECK(found.evaluated == one.evaluated);
      CHECK(std::abs(found.norm / one.norm - 1) < rounding);
      std::size_t names = 0;
      for (std::size_t r = 0; r < found.gradients.size(); ++r) {
        CHECK(found.gradients[r] == found.gradients[found.gradients.size() - 1 - r]);
        names += found.gradients[r].size();
        for (auto const& gradient : found.gradients[r]) {
          auto whole = one.gradients[0].at(gradient.first);
          whole.resize(gradient.second.size());
          CHECK(near(gradient.second, whole, false));
        }
      }
      CHECK(names == 2 * one.gradients[0].size());
    }
  }
}

TEST_CASE("steps in a row add each step's gradient once, or begin anew after a reset") {
  auto const check = [&](auto const& order, mo::schedule_view const& plan) {
    INFO(std::string(order.name) << " on " << plan.ranks() << " ranks");
    outcome const once = run(order, plan), again = run(order, plan, {.steps = 2, .reset = true}),
                  added = run(order, plan, {.steps = 3});
    CHECK(again.gradients == once.gradients);
    CHECK(again.norm == once.norm);
    CHECK(std::abs(added.norm / once.norm - 3) < 3 * rounding);
    for (std::size_t r = 0; r < once.gradients.size(); ++r)
      for (auto const& gradient : once.gradients[r]) {
        auto third = added.gradients[r].at(gradient.first);
        for (double& g : third) g /= 3;
        CHECK(near(third, gradient.second, false));
      }
  };
  check(mo::gpipe{}, plan_of(mo::gpipe{}, 1));
  check(mo::one_f_one_b{}, plan_of(mo::one_f_one_b{}, 4));
  check(mo::zb_v{}, plan_of(mo::zb_v{}, 2, 2));
  check(mo::dual_pipe{}, plan_of(mo::dual_pipe{}, 2, 2));
  check(mo::dual_pipe{}, plan_of(mo::dual_pipe{}, 4, 2));
}
