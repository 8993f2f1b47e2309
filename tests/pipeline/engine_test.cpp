// SPDX-License-Identifier: Apache-2.0
// Steps of MoE layers: losses, counts and gradients of every order, split and mesh are those of the layers one after another.
#include <moiety/pipeline/engine.hpp>

#include "pipeline/linear_stage.hpp"
#include "properties/ranks.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <ratio>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;
using linear::spread;

namespace {

/// Rows keep their size from layer to layer, so that all matter.
struct block : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 4}> {
  using router = mo::router<mo::jitter<std::ratio<1, 10>>, mo::logit_noise, mo::softmax, mo::top_k<2>, mo::renormalised,
                            mo::scale<std::ratio<2>>>;
  using experts = mo::mlp<mo::relu>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z, mo::load_balance<mo::over::sequence>>;
};

using stack = mo::moe_stack<block, spread>;
using counts = std::vector<int>;
using gradients_by_name = std::map<std::string, std::vector<double>>;

constexpr int layers = 8;
std::vector<std::int64_t> const tokens{5, 0, 8, 3, 1, 4, 6, 2};

mo::layer_options<block> options(float coefficient = 0.1f) {
  return {.losses = {mo::load_balance<>{.coefficient = coefficient}, mo::router_z{.coefficient = coefficient / 10},
                     mo::load_balance<mo::over::sequence>{.coefficient = coefficient / 2}}};
}

struct outcome {
  std::vector<double> losses, by_sequence;  // a sequence is what a rank has of a micro-batch
  std::vector<std::vector<std::int64_t>> loads;
  mo::task_loss task;
  gradients_by_name gradients;
};

void read(mo::loss_report<block> const& report, outcome& out) {
  out.losses = report.per_layer<mo::load_balance<>>();
  for (double const v : report.per_layer<mo::router_z>()) out.losses.push_back(v);
  out.by_sequence = report.per_layer<mo::load_balance<mo::over::sequence>>();
  out.by_sequence.push_back(report.total());
  for (std::size_t l = 0; l < report.layers(); ++l) out.loads.push_back(report.counts(l));
}

/// All that a rank knows of a step, in one list.
std::vector<double> reported(outcome const& of) {
  std::vector<double> all = of.losses;
  all.insert(all.end(), of.by_sequence.begin(), of.by_sequence.end());
  for (auto const& loads : of.loads) all.insert(all.end(), loads.begin(), loads.end());
  all.push_back(of.task.sum), all.push_back(of.task.weight);
  return all;
}

std::int64_t before(std::size_t microbatch) {
  return std::accumulate(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(microbatch), std::int64_t{0});
}

/// The step without an engine: one layer after another, one micro-batch after another.
outcome by_hand(int steps = 1, mo::layer_options<block> const& with = options()) {
  outcome out;
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        mo::moe_layer<block, spread> const layer{ctx, with};
        using layer_type = mo::moe_layer<block, spread>;
        std::vector<layer_type::weights_type> weights;
        std::vector<layer_type::gradients_type> gradients;
        for (int l = 0; l < layers; ++l) {
          weights.push_back(layer.make_weights(mo::seed{3}, "layers." + std::to_string(l) + "."));
          gradients.push_back(layer.make_gradients());
        }
        std::optional<mo::loss_ledger<block>> ledger;
        for (int step = 0; step < steps; ++step) {
          ledger.emplace(ctx, layers);
          mo::exact_sum sum, weight;
          for (std::size_t m = 0; m < tokens.size(); ++m) {
            std::vector<mo::matrix<double>> rows;
            std::vector<layer_type::tape_type> tapes;
            rows.push_back(ctx.matrix(tokens[m], 6));
            mo::fill_normal(ctx, rows[0], mo::seed{100}, mo::first_row{before(m)});
            for (std::size_t l = 0; l < layers; ++l) {
              rows.push_back(ctx.matrix(tokens[m], 6));
              tapes.push_back(
                  layer.forward(weights[l], rows[l], rows[l + 1],
                                {.first_row = before(m), .step = step, .layer = static_cast<std::int64_t>(l)}));
              ledger->record(static_cast<std::int64_t>(l), tapes.back());
            }
            auto dy = ctx.matrix(tokens[m], 6);
            mo::task_loss const found = mo::square_error(ctx, rows.back().view(), dy.view());
            sum.add(found.sum), weight.add(found.weight);
            for (std::size_t l = layers; l-- > 0;) {
              auto dx = ctx.matrix(tokens[m], 6);
              layer.backward(weights[l], tapes[l], dy, dx, gradients[l]);
              dy = std::move(dx);
            }
          }
          out.task = {sum.value(), weight.value()};
        }
        read(ledger->reduce(), out);
        for (int l = 0; l < layers; ++l)
          gradients[static_cast<std::size_t>(l)].for_each([&](mo::parameter const& p, std::span<double> v) {
            out.gradients["layers." + std::to_string(l) + "." + p.name].assign(v.begin(), v.end());
          });
      },
      {}, mo::layout{});
  return out;
}

/// Adds this rank's part of the logical gradients: whole sums over ranks.
void collect(mo::context<spread>& ctx, stack::gradients_type& gradients, gradients_by_name& all) {
  static std::mutex mutex;
  gradients.for_each([&](mo::parameter const& p, std::span<double> values) {
    auto& ranks = p.of_experts ? ctx.expert_data() : ctx.stage();
    ranks.all_reduce(values);
    if (ranks.rank() != 0) return;
    std::scoped_lock const lock(mutex);
    auto& whole = all[p.name];
    whole.resize(static_cast<std::size_t>(
        std::accumulate(p.shape.begin(), p.shape.end(), std::int64_t{1}, std::multiplies<>())));
    double const* next = values.data();
    if (!p.of_experts) return static_cast<void>(std::copy(values.begin(), values.end(), whole.begin()));
    p.for_each_piece([&](std::int64_t first, std::int64_t count) {
      std::copy_n(next, count, whole.begin() + first);
      next += count;
    });
  });
}

struct how {
  mo::layout mesh{};  // of a stage
  int steps = 1;
  counts split{};  // equal parts, if empty
  mo::layer_options<block> with = options();
  bool reset = false;  // between steps, which then have one number
};

template <class Order> outcome run(Order const&, mo::schedule_view const& plan, how const& h = {}) {
  outcome out;
  auto const split = h.split.empty() ? mo::split_layers(std::vector<int>(layers, 1), plan.stages())
                                     : mo::split_by_counts(h.split, layers);
  auto const body = [&](mo::context<spread>& ctx) {
    stack stage{ctx, split, h.with, Order::placed};
    auto const weights = stage.make_weights(mo::seed{3});
    auto gradients = stage.make_gradients();
    mo::pipeline_engine engine{ctx, plan, stage};
    std::vector<std::int64_t> mine;
    auto const slice = [&](std::size_t m) { return mo::slice_of(tokens[m], ctx.stage().rank(), ctx.stage().size()); };
    for (std::size_t m = 0; m < tokens.size(); ++m) mine.push_back(slice(m).count);
    auto const inputs = [&](int microbatch, auto x) {
      auto const m = static_cast<std::size_t>(microbatch);
      mo::fill_normal(ctx, x, mo::seed{100}, mo::first_row{before(m) + slice(m).first});
    };
    std::vector<outcome> found(static_cast<std::size_t>(h.steps));
    for (int i = 0; i < h.steps; ++i) {
      if (h.reset) gradients.reset();
      auto& last = found[static_cast<std::size_t>(i)];
      auto const loss = [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); };
      read(engine.step(weights, gradients, mo::microbatches{mine}, inputs, loss, h.reset ? 0 : i), last);
      last.task = engine.task();
    }
    std::vector<double> const here = reported(found.back());
    auto const everywhere = ctx.world().template all_gather_v<double>(std::span<double const>(here));
    if (everywhere.size() != here.size() * static_cast<std::size_t>(ctx.world().size()))
      throw mo::state_error("ranks have reports of different sizes.");
    for (std::size_t i = 0; i < everywhere.size(); ++i)
      if (everywhere[i] != here[i % here.size()]) throw mo::state_error("ranks have different reports.");
    collect(ctx, gradients, out.gradients);
    return found.back();
  };
  mo::layout mesh = h.mesh;
  mesh.pipeline = plan.ranks();
  outcome const last = mo::run<spread>(body, {}, mesh);
  out.losses = last.losses, out.by_sequence = last.by_sequence, out.loads = last.loads, out.task = last.task;
  return out;
}

mo::schedule plan_of(auto const& order, int ranks, int chunks = 1) {
  return mo::make_schedule(order, {.ranks = ranks, .chunks = chunks, .microbatches = static_cast<int>(tokens.size())});
}

enum class close { bits, rounding };

void check_gradients(gradients_by_name const& a, gradients_by_name const& b, close to) {
  REQUIRE(a.size() == b.size());
  for (auto const& gradient : b) {
    auto const& values = gradient.second;
    INFO(gradient.first);
    auto const found = a.find(gradient.first);
    REQUIRE(found != a.end());
    REQUIRE(found->second.size() == values.size());
    CHECK(std::any_of(values.begin(), values.end(), [](double v) { return v != 0; }));
    if (to == close::bits) CHECK(found->second == values);
    CHECK(ranks::distance(found->second, values) < ranks::bound<double>(before(tokens.size())));
  }
}

void check_same(outcome const& a, outcome const& b, close to = close::bits) {
  CHECK(a.losses == b.losses);
  CHECK(a.by_sequence == b.by_sequence);
  CHECK(a.loads == b.loads);
  CHECK(a.task == b.task);
  check_gradients(a.gradients, b.gradients, to);
}

template <class Order> constexpr close closeness(Order const&) {
  return Order::gradients == mo::gradient_order::ascending ? close::bits : close::rounding;
}

/// Layers by stage, where one stage in the middle has none.
counts with_a_gap(int stages) {
  counts split(static_cast<std::size_t>(stages), layers / stages);
  split[0] += std::exchange(split[static_cast<std::size_t>(stages / 2)], 0);
  return split;
}

void check_every_order(std::vector<int> const& pipelines, mo::layout const& mesh, bool gap = false) {
  outcome const reference = by_hand();
  REQUIRE(reference.gradients.size() == 8 * 4);
  outcome const one = run(mo::gpipe{}, plan_of(mo::gpipe{}, 1), {.mesh = mesh});
  CHECK(one.loads == reference.loads);
  CHECK(one.task.weight == reference.task.weight);
  if (mesh.expert_tensor == 1) CHECK(one.losses == reference.losses);  // rows of split experts differ in rounding
  CHECK(ranks::distance(one.losses, reference.losses) < ranks::bound<double>(64));
  CHECK(std::abs(one.task.sum / reference.task.sum - 1) < 1e-14);
  if (mesh.stage() == 1) check_same(one, reference);
  for (int const ranks : pipelines)
    linear::for_each_order(
        ranks, static_cast<int>(tokens.size()), [&](auto const& order, mo::schedule_view const& plan) {
          INFO(std::string(order.name) << " on " << ranks << " ranks, " << plan.stages() << " stages");
          check_same(run(order, plan, {.mesh = mesh, .split = gap ? with_a_gap(plan.stages()) : counts{}}), one,
                     closeness(order));
        });
}

}  // namespace

TEST_CASE("every order, on every number of stages and chunks") { check_every_order({1, 2, 4}, {}); }
TEST_CASE("every order, with experts on two ranks") { check_every_order({1, 2, 4}, {.data = 2, .expert = 2}); }
TEST_CASE("every order, with a stage that has no layer") { check_every_order({2, 4}, {}, true); }
TEST_CASE("every order, with a stage that has no layer and experts on two ranks") {
  check_every_order({2, 4}, {.data = 2, .expert = 2}, true);
}
TEST_CASE("every order on two stages of replicas, of experts on four ranks, of split tokens and of split experts") {
  for (mo::layout const& mesh :
       {mo::layout{.data = 2}, {.data = 4, .expert = 4}, {.tensor = 2, .expert = 2}, {.data = 2, .expert_tensor = 2}}) {
    INFO(mo::detail::sentence(mesh));
    check_every_order({2}, mesh);
  }
}

TEST_CASE("losses are in the gradient of every stage, and noise knows step and row") {
  auto const plan = plan_of(mo::one_f_one_b{}, 4);
  outcome const trained = run(mo::one_f_one_b{}, plan), measured = run(mo::one_f_one_b{}, plan, {.with = options(0)});
  check_same(measured, by_hand(1, options(0)));
  CHECK(trained.losses == measured.losses);
  for (int l = 0; l < layers; ++l) {
    std::string const name = "layers." + std::to_string(l) + ".router.weight";
    REQUIRE(trained.gradients.count(name) == 1);
    double const part = ranks::distance(trained.gradients.at(name), measured.gradients.at(name));
    CHECK(part > 1e-4);
    CHECK(part < 1e4);
  }
  CHECK(run(mo::one_f_one_b{}, plan, {.steps = 2}).losses != trained.losses);
}

TEST_CASE("steps in a row add to gradients until reset") {
  outcome const one = by_hand(1), two = by_hand(2);
  CHECK(ranks::distance(one.gradients.begin()->second, two.gradients.begin()->second) > 1e-2);
  check_same(run(mo::one_f_one_b{}, plan_of(mo::one_f_one_b{}, 2), {.steps = 2}), two);
  check_same(run(mo::zb_v{}, plan_of(mo::zb_v{}, 2, 2), {.steps = 2}), two);
  check_same(run(mo::interleaved_1f1b{}, plan_of(mo::interleaved_1f1b{}, 2, 2), {.steps = 2, .reset = true}), one);
}

TEST_CASE("an engine counts the steps that succeed, on from a number that it is given") {
  auto const plan = plan_of(mo::gpipe{}, 1);
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        stack stage{ctx, mo::split_layers(std::vector<int>(layers, 1), 1), options()};
        auto const weights = stage.make_weights(mo::seed{3});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine given{ctx, plan, stage}, counting{ctx, plan, stage};
        auto const inputs = [&](int m, auto x) {
          mo::fill_normal(ctx, x, mo::seed{100}, mo::first_row{before(static_cast<std::size_t>(m))});
        };
        auto const loss = [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); };
        // Noise tells what the number of a step was.
        auto const losses = [&](auto& engine, auto... number) {
          outcome out;
          read(engine.step(weights, gradients, mo::microbatches{tokens}, inputs, loss, number...), out);
          return out.losses;
        };
        std::vector<std::vector<double>> steps;
        for (int const number : {0, 1, 70, 71}) steps.push_back(losses(given, number));
        CHECK(steps[0] != steps[1]);
        CHECK(losses(counting) == steps[0]);
        auto const broken = [](int, auto, auto) -> mo::task_loss { throw mo::data_error("this time"); };
        CHECK_THROWS_AS(counting.step(weights, gradients, mo::microbatches{tokens}, inputs, broken), mo::data_error);
        counting.evaluate(weights, mo::microbatches{tokens}, inputs, [](int, auto) { return mo::task_loss{}; });
        CHECK(losses(counting) == steps[1]);
        CHECK(losses(counting, 70) == steps[2]);
        CHECK(losses(counting) == steps[3]);
      },
      {}, mo::layout{});
}

TEST_CASE("a data error says of which layer it is") {
  auto const plan = plan_of(mo::one_f_one_b{}, 2);
  CHECK_THROWS_WITH_AS(mo::run<spread>(
                           [&](mo::context<spread>& ctx) {
                             stack stage{ctx, mo::split_layers(std::vector<int>(layers, 1), 2), options()};
                             auto weights = stage.make_weights(mo::seed{3});
                             weights.for_each([](mo::parameter const& p, std::span<double> v) {
                               if (p.name == "layers.5.router.weight") v[0] = std::nan("");
                             });
                             auto gradients = stage.make_gradients();
                             mo::pipeline_engine engine{ctx, plan, stage};
                             engine.step(
                                 weights, gradients, mo::microbatches{tokens},
                                 [&](int, auto x) { mo::fill_normal(ctx, x, mo::seed{1}); },
                                 [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
                           },
                           {}, {.pipeline = 2}),
                       "layer 5: the router logits of token 0 are not all finite.", mo::data_error);
}

TEST_CASE("stages of several layers, and of none") {
  outcome const reference = by_hand();
  for (counts const& split : {counts{2, 0, 5, 1}, {0, 8, 0, 0}, {0, 0, 0, 8}, {3, 3, 2, 0}})
    check_same(run(mo::one_f_one_b{}, plan_of(mo::one_f_one_b{}, 4), {.split = split}), reference);
  check_same(run(mo::zb_v{}, plan_of(mo::zb_v{}, 2, 2), {.split = {0, 5, 0, 3}}), reference);
  check_same(run(mo::zb_h1{}, plan_of(mo::zb_h1{}, 2), {.split = {0, 8}}), reference);
}

TEST_CASE("plans that do not fit") {
  auto const refused = [](mo::schedule_view const& plan, int ranks, int stages, mo::placement where,
                          int microbatches) -> std::string {
    auto const split = mo::split_layers(std::vector<int>(layers, 1), stages);
    try {
      mo::run<spread>(
          [&](mo::context<spread>& ctx) {
            stack stage{ctx, split, {}, where};
            auto const weights = stage.make_weights(mo::seed{3});
            auto gradients = stage.make_gradients();
            mo::pipeline_engine engine{ctx, plan, stage};
            engine.step(
                weights, gradients, mo::equal_batches(microbatches, 4), [](int, auto) {},
                [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
          },
          {}, {.pipeline = ranks});
    } catch (mo::config_error const& e) {
      return e.what();
    }
    return "accepted";
  };
  auto const plan = [](auto const& order, int ranks, int chunks, int m) {
    return mo::make_schedule(order, {.ranks = ranks, .chunks = chunks, .microbatches = m});
  };
  using mo::placement;
  mo::one_f_one_b const order;
  CHECK(refused(plan(order, 2, 1, 4), 2, 2, placement::loop, 4) == "accepted");
  CHECK(refused(plan(order, 2, 1, 4), 4, 4, placement::loop, 4) ==
        "a schedule of 2 ranks was given to a pipeline of 4.");
  CHECK(refused(plan(order, 4, 1, 4), 2, 2, placement::loop, 4) ==
        "a schedule of 4 ranks was given to a pipeline of 2.");
  CHECK(refused(plan(order, 2, 1, 4), 2, 2, placement::loop, 5) == "a schedule of 4 micro-batches was given 5.");
  auto const misfit = [](char const* name, int wanted, char const* by, int stages, char const* placed) {
    return mo::detail::sentence("the schedule ", name, " puts ", wanted, " stages on the ranks by mo::placement::", by,
                                ", but the model is cut into ", stages, ", placed by mo::placement::", placed,
                                ": split it into ", wanted, ", and give the stack mo::placement::", by, '.');
  };
  CHECK(refused(plan(order, 2, 1, 4), 2, 4, placement::loop, 4) == misfit("one_f_one_b", 2, "loop", 4, "loop"));
  CHECK(refused(plan(mo::zb_v{}, 2, 2, 4), 2, 4, placement::v, 4) == "accepted");
  CHECK(refused(plan(mo::zb_v{}, 2, 2, 4), 2, 4, placement::loop, 4) == misfit("zb_v", 4, "v", 4, "loop"));
  CHECK(refused(plan(mo::dual_pipe{}, 2, 2, 4), 2, 2, placement::loop, 4) ==
        misfit("dual_pipe", 2, "bidirectional", 2, "loop"));
}
