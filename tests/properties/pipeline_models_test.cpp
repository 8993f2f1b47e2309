// SPDX-License-Identifier: Apache-2.0
// A model of an embedding, dense layers, MoE layers of two specs and a head: losses, counts and gradients of every order, split
// and mesh are those of one stage, whether layers keep what backward needs or compute it again.
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
#include <functional>
#include <mutex>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace {

using namespace mixed;
using report_type = mo::model_report<wide, noisy>;

std::vector<std::int64_t> const tokens{5, 0, 8, 3, 1, 4, 6, 2};
constexpr int count = 8;

struct outcome {
  std::vector<double> losses;  // of every layer, and the total
  std::vector<std::vector<std::int64_t>> loads, dropped;
  mo::task_loss task;
  values gradients;
};

void read(report_type const& report, outcome& out) {
  for (int const l : report.layers_of<wide>())
    out.losses.push_back(report.value<balance>(l)), out.losses.push_back(report.value<mo::router_z>(l));
  for (int const l : report.layers_of<noisy>())
    out.losses.push_back(report.value<balance>(l)), out.losses.push_back(report.value<by_sequence>(l));
  out.losses.push_back(report.total());
  for (std::size_t l = 0; l < 2; ++l) {
    out.loads.push_back(report.of<wide>().counts(l)), out.loads.push_back(report.of<noisy>().counts(l));
    out.dropped.push_back(report.of<noisy>().dropped(l));
  }
}

/// Adds this rank's part of the logical gradients: whole sums over the ranks of a stage.
void collect(context& ctx, model::gradients_type& gradients, values& all) {
  static std::mutex mutex;
  gradients.for_each([&](mo::parameter const& p, std::span<double> v) {
    auto& ranks = p.of_experts ? ctx.expert_data() : ctx.stage();
    ranks.all_reduce(v);
    if (ranks.rank() != 0) return;
    std::scoped_lock const lock(mutex);
    auto& whole = all[p.name];
    whole.resize(static_cast<std::size_t>(
        std::accumulate(p.shape.begin(), p.shape.end(), std::int64_t{1}, std::multiplies<>())));
    double const* next = v.data();
    p.for_each_piece([&](std::int64_t first, std::int64_t size) {
      std::copy_n(next, size, whole.begin() + first);
      next += size;
    });
  });
}

/// Of each micro-batch, the rows of one rank.
struct rows {
  std::vector<std::int64_t> count;
  std::vector<std::vector<std::int64_t>> sequences;
  std::vector<std::vector<std::int32_t>> words;

  /// The tokens of a micro-batch are in `parts` parts of two sequences each, which lie on one rank or one on each.
  rows(context& ctx, int parts) {
    bool const together = ctx.stage().size() == 1;
    for (std::size_t m = 0; m < tokens.size(); ++m) {
      auto const all = ids(tokens[m], m);
      auto& starts = sequences.emplace_back(1);
      auto& here = words.emplace_back();
      for (int part = together ? 0 : ctx.stage().rank(); part < (together ? parts : ctx.stage().rank() + 1); ++part) {
        auto const mine = mo::slice_of(tokens[m], part, parts);
        starts.push_back(starts.back() + mine.count / 3);
        starts.push_back(starts.back() + mine.count - mine.count / 3);
        here.insert(here.end(), all.begin() + mine.first, all.begin() + mine.first + mine.count);
      }
      count.push_back(starts.back());
    }
  }
  mo::microbatches batches() const {
    return mo::microbatches{count}.describe([this](int microbatch) {
      auto const m = static_cast<std::size_t>(microbatch);
      return mo::batch{.sequences = sequences[m], .ids = words[m]};
    });
  }
};

struct how {
  int data = 1, steps = 1;
  std::vector<int> split{};  // equal parts, if empty
  std::string_view kinds = mixed::kinds;
  bool reset = true;  // between steps
  int parts = data;   // of the tokens of a micro-batch
};

template <class Order> outcome run(Order const&, mo::schedule_view const& plan, how const& h = {}) {
  outcome out;
  auto const split = h.split.empty() ? mo::split_layers(std::vector<int>(layers, 1), plan.stages()) : split_of(h.split);
  auto const body = [&](context& ctx) {
    model stage{ctx, split, build(ctx, h.kinds), Order::placed};
    auto const weights = stage.make_weights(mo::seed{3});
    auto gradients = stage.make_gradients();
    mo::pipeline_engine engine{ctx, plan, stage};
    rows const mine(ctx, h.parts);
    outcome found;
    for (int i = 0; i < h.steps; ++i) {
      if (h.reset) gradients.reset();
      found = {};
      read(engine.step(
               weights, gradients, mine.batches(), mo::no_inputs,
               [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, 7),
           found);
      found.task = engine.task();
    }
    std::vector<double> here = found.losses;
    for (auto const* lists : {&found.loads, &found.dropped})
      for (auto const& list : *lists) here.insert(here.end(), list.begin(), list.end());
    auto const all = ctx.world().template all_gather_v<double>(std::span<double const>(here));
    if (all.size() != here.size() * static_cast<std::size_t>(ctx.world().size()))
      throw mo::state_error("ranks have reports of different sizes.");
    for (std::size_t i = 0; i < all.size(); ++i)
      if (all[i] != here[i % here.size()]) throw mo::state_error("ranks have different reports.");
    collect(ctx, gradients, out.gradients);
    return found;
  };
  outcome const found = mo::run<spread>(body, {}, {.data = h.data, .pipeline = plan.ranks(), .expert = h.data});
  out.losses = found.losses, out.loads = found.loads, out.dropped = found.dropped, out.task = found.task;
  return out;
}

mo::schedule plan_of(auto const& order, int ranks, int chunks = 1) {
  return mo::make_schedule(order, {.ranks = ranks, .chunks = chunks, .microbatches = count});
}

enum class close { bits, rounding };

std::int64_t const addends = std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0});

void check_same(outcome const& a, outcome const& b, close to = close::bits) {
  CHECK(a.losses == b.losses);
  CHECK(a.loads == b.loads);
  CHECK(a.dropped == b.dropped);
  CHECK(a.task == b.task);
  if (to == close::bits) CHECK(a.gradients == b.gradients);
  REQUIRE(a.gradients.size() == b.gradients.size());
  for (auto const& gradient : b.gradients) {
    auto const& v = gradient.second;
    INFO(gradient.first);
    REQUIRE(a.gradients.count(gradient.first) == 1);
    CHECK(std::any_of(v.begin(), v.end(), [](double g) { return g != 0; }));
    CHECK(ranks::distance(a.gradients.at(gradient.first), v) < ranks::bound<double>(addends));
  }
}

void check_every_order(std::vector<int> const& pipelines, how const& h, outcome const& one) {
  for (int const ranks : pipelines)
    linear::for_each_order(ranks, count, [&](auto const& order, mo::schedule_view const& plan) {
      INFO(std::string(order.name) << " on " << ranks << " ranks, " << plan.stages() << " stages");
      check_same(run(order, plan, h), one,
                 order.gradients == mo::gradient_order::ascending ? close::bits : close::rounding);
    });
}

outcome one_stage(int data = 1) { return run(mo::gpipe{}, plan_of(mo::gpipe{}, 1), {.data = data}); }

/// The same tokens and sequences on one rank.
outcome one_rank(int parts) { return run(mo::gpipe{}, plan_of(mo::gpipe{}, 1), {.parts = parts}); }

}  // namespace

TEST_CASE("every order, on every number of stages and chunks") {
  outcome const one = one_stage();
  REQUIRE(one.gradients.size() == 1 + 2 * 3 + 2 * 4 + 2 * 5 + 1);
  REQUIRE(one.losses.size() == 9);
  std::int64_t dropped = 0;
  for (auto const& of_layer : one.dropped) dropped = std::accumulate(of_layer.begin(), of_layer.end(), dropped);
  REQUIRE(dropped > 0);
  CHECK(std::all_of(one.losses.begin(), one.losses.end(), [](double v) { return v > 0; }));
  check_every_order({1, 2, 4}, {}, one);
}

TEST_CASE("every order, with layers that compute again what they did not keep") {
  check_every_order({1, 2, 4}, {.kinds = recomputing}, one_stage());
}

TEST_CASE("every order, with experts on two ranks") {
  outcome const one = one_stage(2);
  check_same(one, one_rank(2), close::rounding);
  check_every_order({1, 2, 4}, {.data = 2}, one);
}

TEST_CASE("every order, with experts on two ranks and layers some of which compute again") {
  outcome const one = one_stage(2);
  check_every_order({1, 2}, {.data = 2, .kinds = recomputing}, one);
  check_every_order({4}, {.data = 2, .kinds = "edWndwNh"}, one);
}

TEST_CASE("every order, with a first stage of an embedding and a dense layer") {
  outcome const one = one_stage();
  linear::for_each_order(2, count, [&](auto const& order, mo::schedule_view const& plan) {
    INFO(std::string(order.name) << ", " << plan.stages() << " stages");
    how const h{.split = plan.stages() == 2 ? std::vector<int>{2, 6} : std::vector<int>{2, 2, 3, 1},
                .kinds = recomputing};
    check_same(run(order, plan, h), one,
               order.gradients == mo::gradient_order::ascending ? close::bits : close::rounding);
  });
}

TEST_CASE("stages without an MoE layer, without any layer, and with all of them") {
  outcome const one = one_stage();
  for (std::vector<int> const& split : {std::vector<int>{2, 2, 3, 1}, {1, 6, 0, 1}, {7, 0, 0, 1}, {4, 0, 3, 1}})
    check_same(run(mo::one_f_one_b{}, plan_of(mo::one_f_one_b{}, 4), {.split = split}), one);
  check_same(run(mo::zb_v{}, plan_of(mo::zb_v{}, 2, 2), {.split = {2, 0, 5, 1}, .kinds = recomputing}), one);
  check_same(run(mo::zb_h1{}, plan_of(mo::zb_h1{}, 2), {.split = {8, 0}}), one);
  check_same(run(mo::one_f_one_b{}, plan_of(mo::one_f_one_b{}, 2), {.split = {0, 8}}), one);
}

TEST_CASE("a model of one spec reports its layers by their numbers, one without losses nothing") {
  using one_spec = mo::block_stack<spread, dense, wide_layer>;
  using no_spec = mo::block_stack<spread, dense>;
  auto const plan = plan_of(mo::one_f_one_b{}, 2);
  mo::run<spread>(
      [&](context& ctx) {
        auto const fill = [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{10 + m}); };
        auto const loss = [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); };
        one_spec stage{ctx, split_of({2, 3}), [&](int layer) -> std::variant<dense, wide_layer> {
                         if (layer % 3 == 0) return dense{ctx};
                         return wide_layer{ctx, wide_options()};
                       }};
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        mo::loss_report<wide> const report =
            engine.step(stage.make_weights(mo::seed{1}), gradients, mo::microbatches{tokens}, fill, loss);
        std::vector<int> numbers;
        for (std::size_t l = 0; l < report.layers(); ++l) numbers.push_back(report.number(l));
        if (numbers != std::vector<int>{1, 2, 4} || numbers != stage.layers_of<wide>() || report.tokens() != 29)
          throw mo::state_error("the report has other layers.");

        no_spec plain{ctx, split_of({2, 3}), [&](int) { return dense{ctx}; }};
        auto sums = plain.make_gradients();
        mo::pipeline_engine without{ctx, plan, plain};
        static_assert(std::is_void_v<decltype(without.step(plain.make_weights(mo::seed{1}), sums,
                                                           mo::microbatches{tokens}, fill, loss))>);
        without.step(plain.make_weights(mo::seed{1}), sums, mo::microbatches{tokens}, fill, loss);
      },
      {}, {.pipeline = 2});
}
