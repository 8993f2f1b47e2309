// SPDX-License-Identifier: Apache-2.0
// Descriptions of micro-batches reach every layer of a pipeline: masks, sequences, weights, and the ids that a hash router
// reads, and the scale of each. Losses, counts and gradients are those of the layers one after another, to the bit.
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <ratio>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct spread : mo::deployment<mo::dynamic> {
  using element = double;
};

template <class Router> struct block : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 5, .experts = 4}> {
  using router = Router;
  using experts = mo::mlp<mo::relu>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z, mo::load_balance<mo::over::sequence>>;
};
using by_score = block<mo::router<mo::jitter<std::ratio<1, 10>>, mo::softmax, mo::top_k<2>, mo::renormalised>>;
using by_id = block<mo::router<mo::softmax, mo::hash<2>>>;

constexpr int layers = 4, count = 4, words = 7;
std::vector<std::int64_t> const tokens{5, 0, 9, 4};

/// Two distinct experts for each word.
std::vector<std::int32_t> const table{0, 1, 1, 2, 3, 0, 2, 1, 3, 1, 0, 2, 3, 2};

template <class Spec> mo::layer_options<Spec> options() {
  mo::layer_options<Spec> o{.losses = {mo::load_balance<>{.coefficient = 0.1f}, mo::router_z{.coefficient = 0.01f},
                                       mo::load_balance<mo::over::sequence>{.coefficient = 0.05f}}};
  if constexpr (std::is_same_v<Spec, by_id>) o.router = {mo::hash<2>{.table = table.data(), .entries = words}};
  return o;
}

/// All that a description can say of the rows that begin at `first`.
struct description {
  std::vector<std::int64_t> sequences;
  std::vector<std::uint8_t> mask;
  std::vector<std::int32_t> ids;

  description(std::int64_t first, std::int64_t rows) {
    sequences = {0, rows / 3, rows / 3, rows};
    for (std::int64_t t = first; t < first + rows; ++t) {
      mask.push_back(t % 4 == 1 ? 0 : 1);
      ids.push_back(static_cast<std::int32_t>((5 * t + t / 3) % words));
    }
  }
  mo::batch about(std::int64_t step = 0, std::int64_t first = 0) const {
    return {.sequences = sequences, .mask = mask, .ids = ids, .first_row = first, .step = step, .weight = 2.5};
  }
};

std::vector<description> descriptions() {
  std::vector<description> all;
  std::int64_t first = 0;
  for (std::int64_t const rows : tokens) all.emplace_back(first, rows), first += rows;
  return all;
}

struct outcome {
  std::vector<double> losses;
  std::vector<std::vector<std::int64_t>> loads;
  mo::task_loss task;
  std::map<std::string, std::vector<double>> gradients;
};

template <class Spec> void read(mo::loss_report<Spec> const& report, outcome& out) {
  for (auto const& of : {report.template per_layer<mo::load_balance<>>(), report.template per_layer<mo::router_z>(),
                         report.template per_layer<mo::load_balance<mo::over::sequence>>()})
    out.losses.insert(out.losses.end(), of.begin(), of.end());
  out.losses.push_back(report.total());
  for (std::size_t l = 0; l < report.layers(); ++l) out.loads.push_back(report.counts(l));
}

/// What a loss and the gradients of auxiliary losses are multiplied by, for each micro-batch.
using scales = std::vector<float>;
scales const unscaled(count, 1);

/// The loss of rows, and its gradient times the scale.
mo::task_loss scaled_error(mo::context<spread>& ctx, mo::matrix_view<double> y, mo::matrix_view<double> dy,
                           float scale) {
  mo::task_loss const found = mo::square_error(ctx, y, dy);
  for (std::int64_t t = 0; t < dy.rows(); ++t)
    for (std::int64_t h = 0; h < dy.cols(); ++h) dy(t, h) *= static_cast<double>(scale);
  return found;
}

/// Without an engine: layer by layer, micro-batch by micro-batch.
template <class Spec> outcome by_hand(std::int64_t step, scales const& by = unscaled) {
  outcome out;
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        mo::moe_layer<Spec, spread> const layer{ctx, options<Spec>()};
        std::vector<typename mo::moe_layer<Spec, spread>::weights_type> weights;
        std::vector<typename mo::moe_layer<Spec, spread>::gradients_type> gradients;
        for (int l = 0; l < layers; ++l) {
          weights.push_back(layer.make_weights(mo::seed{3}, "layers." + std::to_string(l) + "."));
          gradients.push_back(layer.make_gradients());
        }
        mo::loss_ledger<Spec> ledger(ctx, layers);
        auto const all = descriptions();
        std::int64_t first = 0;
        for (std::size_t m = 0; m < count; first += tokens[m++]) {
          mo::batch about = all[m].about(step, first);
          about.loss_scale = by[m];
          std::vector<mo::matrix<double>> rows;
          std::vector<typename mo::moe_layer<Spec, spread>::tape_type> tapes;
          rows.push_back(ctx.matrix(tokens[m], 6));
          mo::fill_normal(ctx, rows[0], mo::seed{100 + m});
          for (std::size_t l = 0; l < layers; ++l) {
            about.layer = static_cast<std::int64_t>(l);
            rows.push_back(ctx.matrix(tokens[m], 6));
            tapes.push_back(layer.forward(weights[l], rows[l], rows[l + 1], about));
            ledger.record(static_cast<std::int64_t>(l), tapes.back());
          }
          auto dy = ctx.matrix(tokens[m], 6);
          mo::task_loss const found = scaled_error(ctx, rows.back().view(), dy.view(), by[m]);
          out.task.sum += found.sum, out.task.weight += found.weight;
          for (std::size_t l = layers; l-- > 0;) {
            auto dx = ctx.matrix(tokens[m], 6);
            layer.backward(weights[l], tapes[l], dy, dx, gradients[l]);
            dy = std::move(dx);
          }
        }
        read(ledger.reduce(), out);
        for (int l = 0; l < layers; ++l)
          gradients[static_cast<std::size_t>(l)].for_each([&](mo::parameter const& p, std::span<double> v) {
            out.gradients["layers." + std::to_string(l) + "." + p.name].assign(v.begin(), v.end());
          });
      },
      {}, mo::layout{});
  return out;
}

struct how {
  bool described = true;
  scales by = unscaled;
};

/// Layers as they are, or such as compute again what they did not keep.
template <class Spec, bool Again = false>
outcome on_stages(int ranks, int chunks, std::int64_t step, how const& h = {}) {
  using layer = mo::moe_layer<Spec, spread>;
  using again = mo::recomputed<layer>;
  using model = std::conditional_t<Again, mo::block_stack<spread, again>, mo::moe_stack<Spec, spread>>;
  outcome out;
  mo::schedule const plan =
      chunks == 1 ? mo::make_schedule(mo::one_f_one_b{}, {.ranks = ranks, .microbatches = count})
                  : mo::make_schedule(mo::zb_v{}, {.ranks = ranks, .chunks = chunks, .microbatches = count});
  auto const split = mo::split_layers(std::vector<int>(layers, 1), ranks * chunks);
  std::mutex mutex;
  out.task = mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        model stage{ctx, split,
                    [&] {
                      if constexpr (!Again)
                        return options<Spec>();
                      else
                        return [&](int) { return again{ctx, layer{ctx, options<Spec>()}}; };
                    }(),
                    chunks == 1 ? mo::placement::loop : mo::placement::v};
        auto const weights = stage.make_weights(mo::seed{3});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, mo::schedule_view(plan), stage};
        auto const all = descriptions();
        mo::microbatches batches{tokens};
        if (h.described)
          batches.describe([&](int m) {
            mo::batch about = all[static_cast<std::size_t>(m)].about();
            about.loss_scale = h.by[static_cast<std::size_t>(m)];
            return about;
          });
        auto const report = engine.step(
            weights, gradients, batches,
            [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{100 + static_cast<std::uint64_t>(m)}); },
            [&](int m, auto y, auto dy) { return scaled_error(ctx, y, dy, h.by[static_cast<std::size_t>(m)]); }, step);
        mo::task_loss const trained = engine.task();
        std::scoped_lock const lock(mutex);
        if (ctx.pipeline().rank() == 0) read(report, out);
        gradients.for_each(
            [&](mo::parameter const& p, std::span<double> v) { out.gradients[p.name].assign(v.begin(), v.end()); });
        return trained;
      },
      {}, {.pipeline = ranks});
  return out;
}

template <class Spec> void check_all() {
  outcome const wanted = by_hand<Spec>(3);
  REQUIRE(wanted.gradients.size() == layers * 3);
  CHECK(std::any_of(wanted.losses.begin(), wanted.losses.end(), [](double v) { return v > 0; }));
  std::int64_t routed = 0;
  for (std::int64_t const load : wanted.loads[0]) routed += load;
  CHECK(routed == 2 * 13);  // of 18 tokens 5 are padding
  struct cut {
    int ranks, chunks;
  };
  for (auto const [ranks, chunks] : {cut{1, 1}, {2, 1}, {4, 1}, {2, 2}}) {
    std::string const on = std::to_string(ranks) + " ranks of " + std::to_string(chunks);
    CAPTURE(on);
    outcome const found = on_stages<Spec>(ranks, chunks, 3);
    CHECK(found.losses == wanted.losses);
    CHECK(found.loads == wanted.loads);
    CHECK(found.gradients == wanted.gradients);
    CHECK(found.task.weight == wanted.task.weight);
    CHECK(std::abs(found.task.sum / wanted.task.sum - 1) < 1e-14);
    CHECK(found.task == on_stages<Spec>(1, 1, 3).task);
  }
}

}  // namespace

TEST_CASE("masks, sequences and weights, where the router draws noise") { check_all<by_score>(); }
TEST_CASE("ids, where the router is a table of them") { check_all<by_id>(); }

TEST_CASE("what a description says matters, and a router that needs one is refused without") {
  CHECK(on_stages<by_score>(2, 1, 3, {.described = false}).losses != on_stages<by_score>(2, 1, 3).losses);
  CHECK(on_stages<by_score>(2, 1, 4).losses != on_stages<by_score>(2, 1, 3).losses);
  CHECK_THROWS_AS(on_stages<by_id>(2, 1, 3, {.described = false}), mo::data_error);
}

TEST_CASE_TEMPLATE("the scale of each micro-batch, of layers that keep their tapes and of such as compute again", Again,
                   std::false_type, std::true_type) {
  auto const run = [](scales const& by) { return on_stages<by_score, Again::value>(2, 2, 3, {.by = by}); };
  outcome const one = run(unscaled), twice = run(scales(count, 2));
  CHECK(one.gradients == by_hand<by_score>(3).gradients);
  auto doubled = one.gradients;
  for (auto& of : doubled)
    for (double& g : of.second) g *= 2;
  CHECK(twice.gradients == doubled);
  CHECK(twice.losses == one.losses);

  // Each acts on its own micro-batch.
  for (scales const& by : {scales{2, 1, 1, 1}, scales{1, 1, 2, 1}, scales{2, 1, 0.25f, 8}}) {
    outcome const apart = run(by);
    CHECK(apart.gradients == by_hand<by_score>(3, by).gradients);
    CHECK(apart.gradients != one.gradients);
    CHECK(apart.losses == one.losses);
  }
}

TEST_CASE("a description that does not fit on one rank is an error of all ranks, and the next step is in order") {
  mo::schedule const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 2});
  std::vector<std::uint8_t> const mask{1, 1, 1}, short_mask{1, 1};
  std::vector<std::int64_t> const sequences{0, 4};
  for (int const at_fault : {0, 1, 2, 3})
    mo::run<spread>(
        [&](mo::context<spread>& ctx) {
          bool const mine = ctx.world().rank() == at_fault;
          mo::moe_stack<by_score, spread> stage{ctx, mo::split_layers(std::vector<int>(2, 1), 2), options<by_score>()};
          auto const weights = stage.make_weights(mo::seed{3});
          mo::pipeline_engine engine{ctx, plan, stage}, untouched{ctx, plan, stage};
          auto const step = [&](auto& of, mo::microbatches const& batches) {
            auto gradients = stage.make_gradients();
            of.step(
                weights, gradients, batches, [&](int, auto x) { mo::fill_normal(ctx, x, mo::seed{1}); },
                [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); });
            std::vector<double> all;
            gradients.for_each([&](auto const&, auto v) { all.insert(all.end(), v.begin(), v.end()); });
            return all;
          };
          auto const described = [&](mo::batch const& wrong) {
            return mo::equal_batches(2, 3).describe(
                [&, wrong](int m) { return mine && m == 1 ? wrong : mo::batch{.mask = mask}; });
          };
          CHECK_THROWS_AS(step(engine, described({.mask = short_mask})), mo::data_error);
          CHECK_THROWS_AS(step(engine, described({.sequences = sequences})), mo::data_error);
          CHECK_THROWS_AS(step(engine, mo::equal_batches(mine ? 3 : 2, 3)), mo::config_error);
          auto const evaluated = [](int, auto) { return mo::task_loss{}; };
          CHECK_THROWS_AS(engine.evaluate(
                              weights, described({.mask = short_mask}), [](int, auto) {}, evaluated),
                          mo::data_error);
          auto const right = described({.mask = mask});
          CHECK(step(engine, right) == step(untouched, right));
        },
        {.deadline = std::chrono::seconds(10)}, {.data = 2, .pipeline = 2});
}
