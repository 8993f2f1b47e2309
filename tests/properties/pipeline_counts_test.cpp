// SPDX-License-Identifier: Apache-2.0
// Balance losses over the global batch under an engine: each layer has the counts of its own micro-batches, whatever the order,
// the split and the mesh. Losses and gradients are those of the layers by hand with one mo::step_counts each, to the bit.
#include "pipeline/linear_stage.hpp"
#include "properties/ranks.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mo = moiety;
using linear::spread;

namespace {

template <class Counts> using balance = mo::load_balance<mo::over::global_batch, Counts>;
template <class Counts> struct block : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using experts = mo::mlp<mo::relu>;
  using losses = mo::losses<balance<Counts>, mo::router_z>;
};
template <class Counts> using layer_of = mo::moe_layer<block<Counts>, spread>;
template <class Counts> using stack_of = mo::block_stack<spread, layer_of<Counts>, mo::recomputed<layer_of<Counts>>>;
using mo::counts::prefix, mo::counts::previous_step;

constexpr int layers = 8, steps = 3;
std::vector<std::int64_t> const tokens{5, 0, 8, 3, 1, 4, 6, 2};

template <class Counts> mo::layer_options<block<Counts>> options() {
  return {.losses = {balance<Counts>{.coefficient = 0.5f}, mo::router_z{.coefficient = 0.01f}}};
}

/// Of all steps the losses and loads, of the last one the gradients.
struct outcome {
  std::vector<double> losses;
  std::vector<std::vector<std::int64_t>> loads;
  std::map<std::string, std::vector<double>> gradients;
};

template <class Counts> void read(mo::loss_report<block<Counts>> const& report, outcome& out) {
  for (double const v : report.template per_layer<balance<Counts>>()) out.losses.push_back(v);
  out.losses.push_back(report.total());
  for (std::size_t l = 0; l < report.layers(); ++l) out.loads.push_back(report.counts(l));
}

mo::seed inputs_of(std::int64_t step, std::size_t m) { return mo::seed{static_cast<std::uint64_t>(step) * 100 + m}; }

/// The layers one after another. Micro-batches of two halves that each go a way of their own do not count one another.
template <class Counts> outcome by_hand(bool halves = false) {
  outcome out;
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        layer_of<Counts> const layer{ctx, options<Counts>()};
        std::vector<typename layer_of<Counts>::weights_type> weights;
        std::vector<typename layer_of<Counts>::gradients_type> gradients;
        std::vector<mo::step_counts> counts(2 * layers, mo::step_counts(4));
        for (int l = 0; l < layers; ++l) {
          weights.push_back(layer.make_weights(mo::seed{3}, "layers." + std::to_string(l) + "."));
          gradients.push_back(layer.make_gradients());
        }
        for (std::int64_t step = 0; step < steps; ++step) {
          mo::loss_ledger<block<Counts>> ledger(ctx, layers);
          for (auto& g : gradients) g.reset();
          std::int64_t first = 0;
          for (std::size_t m = 0; m < tokens.size(); first += tokens[m++]) {
            std::vector<mo::matrix<double>> rows;
            std::vector<typename layer_of<Counts>::tape_type> tapes;
            rows.push_back(ctx.matrix(tokens[m], 6));
            mo::fill_normal(ctx, rows[0], inputs_of(step, m));
            for (std::size_t l = 0; l < layers; ++l) {
              rows.push_back(ctx.matrix(tokens[m], 6));
              auto& mine = counts[l + (halves && 2 * m >= tokens.size() ? layers : 0)];
              tapes.push_back(
                  layer.forward(weights[l], rows[l], rows[l + 1],
                                {.first_row = first, .step = step, .layer = std::int64_t(l), .counts = &mine}));
              mine.add(tapes.back().statistics());
              ledger.record(static_cast<std::int64_t>(l), tapes.back());
            }
            auto dy = ctx.matrix(tokens[m], 6);
            mo::square_error(ctx, rows.back().view(), dy.view());
            for (std::size_t l = layers; l-- > 0;) {
              auto dx = ctx.matrix(tokens[m], 6);
              layer.backward(weights[l], tapes[l], dy, dx, gradients[l]);
              dy = std::move(dx);
            }
          }
          for (auto& c : counts) c.next_step();
          read(ledger.reduce(), out);
        }
        for (int l = 0; l < layers; ++l)
          gradients[static_cast<std::size_t>(l)].for_each([&](mo::parameter const& p, std::span<double> v) {
            out.gradients["0: layers." + std::to_string(l) + "." + p.name].assign(v.begin(), v.end());
          });
      },
      {}, mo::layout{});
  return out;
}

struct broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A model whose odd layers compute again what they did not keep; the gradients are those of each rank of a stage.
template <class Counts>
outcome run(mo::schedule_view const& plan, mo::placement where, mo::layout mesh = {}, bool breaks = false) {
  using layer = layer_of<Counts>;
  outcome out;
  std::mutex mutex;
  mesh.pipeline = plan.ranks();
  auto const split = mo::split_layers(std::vector<int>(layers, 1), plan.stages());
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        stack_of<Counts> stage{ctx, split,
                               [&](int l) -> typename stack_of<Counts>::any_block {
                                 if (l % 2 == 0) return layer{ctx, options<Counts>()};
                                 return mo::recomputed{ctx, layer{ctx, options<Counts>()}};
                               },
                               where};
        auto const weights = stage.make_weights(mo::seed{3});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        int const rank = ctx.stage().rank();
        auto const slice = [&](std::size_t m) { return mo::slice_of(tokens[m], rank, ctx.stage().size()); };
        std::vector<std::int64_t> sizes;
        for (std::size_t m = 0; m < tokens.size(); ++m) sizes.push_back(slice(m).count);
        mo::microbatches const batches{sizes};
        for (std::int64_t step = 0; step < steps; ++step) {
          auto const inputs = [&](int m, auto x) {
            auto const at = static_cast<std::size_t>(m);
            mo::fill_normal(ctx, x, inputs_of(step, at), mo::first_row{slice(at).first});
          };
          if (breaks) {
            auto const late = [&](int m, auto y, auto dy) -> mo::task_loss {
              if (m == 6) throw broken("this time");
              return mo::square_error(ctx, y, dy);
            };
            CHECK_THROWS_AS(engine.step(weights, gradients, batches, inputs, late, step), broken);
          }
          gradients.reset();
          auto const report = engine.step(
              weights, gradients, batches, inputs, [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); },
              step);
          engine.evaluate(weights, batches, inputs, [](int, auto) { return mo::task_loss{}; });
          std::scoped_lock const lock(mutex);
          if (ctx.world().rank() == 0) read(report, out);
        }
        std::scoped_lock const lock(mutex);
        gradients.for_each([&](mo::parameter const& p, std::span<double> v) {
          out.gradients[std::to_string(rank) + ": " + p.name].assign(v.begin(), v.end());
        });
      },
      {.deadline = std::chrono::seconds(60)}, mesh);
  return out;
}

void check_same(outcome const& found, outcome const& wanted, bool bits) {
  CHECK(found.losses == wanted.losses);
  CHECK(found.loads == wanted.loads);
  REQUIRE(found.gradients.size() == wanted.gradients.size());
  for (auto const& gradient : wanted.gradients) {
    INFO(gradient.first);
    auto const& values = found.gradients.at(gradient.first);
    if (bits) CHECK(values == gradient.second);
    CHECK(ranks::distance(values, gradient.second) < ranks::bound<double>(64));
  }
}

template <class Order> constexpr bool same_bits = Order::gradients == mo::gradient_order::ascending;
template <class Order> constexpr bool both_ways = Order::placed == mo::placement::bidirectional;

}  // namespace

TEST_CASE_TEMPLATE("every order, on every number of stages", Counts, prefix, previous_step) {
  bool const by_prefix = std::is_same_v<Counts, prefix>;
  outcome const one = by_hand<Counts>(), halves = by_hand<Counts>(by_prefix);
  CHECK(one.loads[0] != one.loads[1]);
  CHECK(one.loads[0] != one.loads[layers]);
  CHECK((one.gradients == halves.gradients) == !by_prefix);
  for (int const ranks : {1, 2, 4})
    linear::for_each_order(
        ranks, static_cast<int>(tokens.size()), [&]<class Order>(Order const& order, mo::schedule_view const& plan) {
          INFO(std::string(order.name) << " on " << ranks << " ranks, " << plan.stages() << " stages");
          check_same(run<Counts>(plan, Order::placed), both_ways<Order> ? halves : one, same_bits<Order>);
        });
}

TEST_CASE_TEMPLATE("stages of several ranks", Counts, prefix, previous_step) {
  outcome const hand = by_hand<Counts>();
  for (mo::layout const& mesh : {mo::layout{.data = 2}, {.data = 2, .expert = 2}}) {
    auto const alone = mo::make_schedule(mo::gpipe{}, {.ranks = 1, .microbatches = 8});
    outcome const one = run<Counts>(alone, mo::placement::loop, mesh);
    CHECK(one.losses == hand.losses);
    CHECK(one.loads == hand.loads);
    linear::for_each_plan(2, 8, [&]<class Order>(Order const&, mo::schedule_view const& plan) {
      check_same(run<Counts>(plan, Order::placed, mesh), one, same_bits<Order>);
    });
  }
}

TEST_CASE_TEMPLATE("what a step that failed has counted is forgotten", Counts, prefix, previous_step) {
  auto const plan = mo::make_schedule(mo::zb_v{}, {.ranks = 1, .chunks = 2, .microbatches = 8});
  check_same(run<Counts>(plan, mo::placement::v, {}, true), by_hand<Counts>(), true);
}

TEST_CASE("forwards of a stage are in ascending order in every order, of each way where there are two") {
  for (int const ranks : {1, 2, 3, 4})
    linear::for_each_order(ranks, 12, [&](auto const& order, mo::schedule_view const& plan) {
      INFO(std::string(order.name) << " on " << ranks << " ranks");
      for (int r = 0; r < ranks; ++r) {
        std::map<int, int> last;
        for (mo::action const& a : plan.rank(r)) {
          if (a.type != mo::computation::forward) continue;
          auto const [at, first] = last.try_emplace(a.stage, a.microbatch);
          CHECK((first || at->second < a.microbatch));
          at->second = a.microbatch;
        }
      }
    });
}

TEST_CASE("counts of one layer are refused as those of a whole model, on all ranks, and the next step is in order") {
  auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 2});
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        mo::moe_stack<block<prefix>, spread> stage{ctx, mo::split_layers(std::vector<int>(2, 1), 2), options<prefix>()};
        auto const weights = stage.make_weights(mo::seed{3});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        mo::step_counts const counts(4);
        auto const step = [&](mo::batch const& about) {
          engine.step(
              weights, gradients, mo::equal_batches(2, 3).describe([&](int) { return about; }),
              [](int, auto x) { std::fill_n(x.data(), x.rows() * x.cols(), 1.0); },
              [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
        };
        auto const first_only = ctx.pipeline().rank() == 0 ? mo::batch{.counts = &counts} : mo::batch{};
        CHECK_THROWS_WITH_AS(step(first_only), doctest::Contains("names mo::batch{.counts}, which are of one layer"),
                             mo::data_error);
        step({});
        auto x = ctx.matrix(3, 6), y = ctx.matrix(3, 6);
        CHECK_THROWS_WITH_AS(stage.forward(weights, 0, x, y, {.counts = &counts}),
                             doctest::Contains("mo::batch{.counts} is of one layer, and a model has several"),
                             mo::data_error);
        CHECK_THROWS_AS(stage.infer(weights, 0, x, y, {.counts = &counts}), mo::data_error);
      },
      {.deadline = std::chrono::seconds(20)}, {.pipeline = 2});
}
