// SPDX-License-Identifier: Apache-2.0
// A stack of layers is trained, its selection biases stepped, and its checkpoint taken to another number of stages: the same
// bits on each.
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>
#include <moiety/training/layer_checkpoint.hpp>

#include "pipeline/mixed_model.hpp"
#include "training/rank_files.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct block : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 6, .experts = 6}> {
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>, mo::renormalised>;
  using experts = mo::gated_mlp<mo::silu>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
struct spread : mo::deployment<mo::dynamic> {};
using stack = mo::moe_stack<block, spread>;

mo::layer_options<block> const options{.router = {mo::selection_bias{.rate = 0.05f}},
                                       .losses = {mo::load_balance<>{.coefficient = 0.02f}}};

/// Whether every rank of the run has the same.
template <class T> bool common(mo::context<spread>& ctx, std::vector<T> const& mine) {
  auto const all = ctx.world().template all_gather_v<T>(mine);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (all[i] != mine[i % mine.size()]) return false;
  return all.size() == mine.size() * static_cast<std::size_t>(ctx.world().size());
}

class trainer {
 public:
  auto parameters() { return mo::parameters_of(weights, gradients); }

  trainer(mo::context<spread>& context, std::uint64_t seed)
      : ctx(context),
        plan(mo::make_schedule(mo::one_f_one_b{}, {.ranks = ctx.pipeline().size(), .microbatches = 4})),
        stage(ctx, mo::split_layers(std::vector<int>(4, 1), ctx.pipeline().size()), options),
        weights(stage.make_weights(mo::seed{seed})),
        gradients(stage.make_gradients()) {
    optimiser.prepare(parameters());
  }

  std::vector<mo::tensor_slice> slices() {
    auto all = mo::slices_of(ctx, weights);
    auto const states = mo::state_slices_of(ctx, weights, optimiser);
    all.insert(all.end(), states.begin(), states.end());
    return all;
  }

  mo::loss_report<block> step(std::int64_t number) {
    gradients.reset();
    auto const tokens = 5 + 3 * ctx.stage().rank();
    auto const report = engine.step(
        weights, gradients, mo::equal_batches(4, tokens),
        [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{100 * number + 10 * m + ctx.stage().rank()}); },
        [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, number);
    auto const list = mo::gradients_of<float>(parameters());
    mo::reduce_gradients(list, mo::groups_of(ctx), {.where = mo::summed::slices});
    mo::normalise(list, engine.task().weight);
    double const norm = mo::global_norm(ctx, gradients);
    mo::clip_gradients(list, 0.1, norm);
    REQUIRE(optimiser.step(parameters(), 1e-2, norm));
    mo::update_selection_biases(ctx, options, weights, report);
    return report;
  }

  mo::context<spread>& ctx;
  mo::schedule plan;
  stack stage;
  stack::weights_type weights;
  stack::gradients_type gradients;
  mo::pipeline_engine<spread, stack> engine{ctx, plan, stage};
  mo::sharded_adamw<float, mo::thread_communicator> optimiser{mo::groups_of(ctx)};
};

template <class F> void on(int stages, F const& f) {
  mo::run<spread>(f, {.deadline = std::chrono::seconds(60)}, {.data = 2, .pipeline = stages, .expert = 2});
}

/// Steps [from, to) on some stages × expert 2, between checkpoints.
void train(int stages, int from, int to, std::string const& load, std::string const& save) {
  on(stages, [&](mo::context<spread>& ctx) {
    trainer model(ctx, load.empty() ? 1 : 55);
    if (!load.empty())
      model.optimiser.resume(std::stoll(mo::load_checkpoint(ctx.world(), load, model.slices()).at("step")));
    for (int s = from; s < to; ++s) model.step(s);
    mo::save_checkpoint(ctx.world(), save, model.slices(), {{"step", std::to_string(to)}});
  });
}

}  // namespace

TEST_CASE("a checkpoint of 2 stages goes on on 1, and its on 4, with the bits of training that was not cut") {
  scratch_folder const folder;
  std::string const first = folder.file("first"), second = folder.file("second"), third = folder.file("third"),
                    uncut = folder.file("uncut"), copied = folder.file("copied");
  train(2, 0, 2, "", first);
  for (int const stages : {1, 2, 4}) {
    train(stages, 2, 2, first, copied);
    CHECK(contents(copied) == contents(first));
  }
  train(1, 2, 3, first, second);
  train(4, 3, 5, second, third);
  for (int const stages : {1, 4}) {
    train(stages, 0, 5, "", uncut);
    CHECK(contents(uncut) == contents(third));
  }
  CHECK(contents(third) != contents(second));
  auto const tensors = mo::read_safetensors(mo::detail::posix_file::open_to_read(third)).tensors;
  for (int l = 0; l < 4; ++l) {
    std::string const layer = "layers." + std::to_string(l);
    for (auto const* name : {".router.selection_bias", ".experts.gate", ".router.weight.first_moment"})
      CHECK(tensors.contains(layer + name));
  }
}

TEST_CASE("every layer's selection bias takes one step by the counts of the global batch, on every rank the same") {
  for (int const stages : {1, 2})
    on(stages, [&](mo::context<spread>& ctx) {
      trainer model(ctx, 1);
      std::vector<std::vector<float>> expected(4, std::vector<float>(6));
      for (std::int64_t s = 0; s < 3; ++s) {
        auto const report = model.step(s);
        for (std::size_t l = 0; l < 4; ++l) {
          auto const counts = report.counts(l);
          CHECK(common(ctx, counts));
          CHECK(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) == 2 * 4 * (5 + 8));
          mo::selection_bias{.rate = 0.05f}.update(counts, expected[l]);
        }
        std::vector<double> const loads{report.entropy(), report.entropy(3), static_cast<double>(report.dead(3))};
        CHECK(common(ctx, loads));
        CHECK(report.entropy() > 0);
        CHECK(report.entropy() < 1);
        int seen = 0;
        for (std::size_t i = 0; i < model.weights.size(); ++i) {
          auto const l = static_cast<std::size_t>(model.weights.number(i));
          std::string const name = "layers." + std::to_string(l) + ".router.selection_bias";
          model.weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> values) {
            if (p.name != name) return;
            CHECK(std::equal(values.begin(), values.end(), expected[l].begin()));
            ++seen;
          });
        }
        CHECK(seen == 4 / stages);
      }
      CHECK(expected[0] != expected[1]);
    });
}

namespace {

/// Steps [from, to) of a model whose head has the embedding's matrix, each stage on two ranks that share tokens and experts.
void train_tied(int stages, int from, int to, std::string const& load, std::string const& save) {
  constexpr std::string_view kinds = "tdwndWnu";
  constexpr int micro = 4;
  mo::run<mixed::spread>(
      [&](mixed::context& ctx) {
        auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = stages, .microbatches = micro});
        mixed::model stage{ctx, mo::split_layers(std::vector<int>(kinds.size(), 1), stages), mixed::build(ctx, kinds)};
        auto weights = stage.make_weights(mo::seed{load.empty() ? 1 : 55});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        mo::sharded_adamw<double, mo::thread_communicator> optimiser{mo::groups_of(ctx)};
        auto const parameters = mo::parameters_of(weights, gradients);
        optimiser.prepare(parameters);
        auto const slices = [&] {
          auto all = mo::slices_of(ctx, weights);
          auto const states = mo::state_slices_of(ctx, weights, optimiser);
          all.insert(all.end(), states.begin(), states.end());
          return all;
        };
        if (!load.empty()) mo::load_checkpoint(ctx.world(), load, slices());
        optimiser.resume(from);
        std::int64_t const rows = 3 + 2 * ctx.stage().rank();
        for (int s = from; s < to; ++s) {
          std::vector<std::vector<std::int32_t>> words;
          for (int m = 0; m < micro; ++m)
            words.push_back(mixed::ids(rows, static_cast<std::uint64_t>(100 * s + 10 * m + ctx.stage().rank())));
          gradients.reset();
          engine.step(
              weights, gradients, mo::equal_batches(micro, rows).describe([&](int m) {
                return mo::batch{.ids = words[static_cast<std::size_t>(m)]};
              }),
              mo::no_inputs, [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, s);
          auto const list = mo::gradients_of<double>(parameters);
          mo::reduce_gradients(list, mo::groups_of(ctx), {.where = mo::summed::slices});
          mo::normalise(list, engine.task().weight);
          double const norm = mo::global_norm(ctx, gradients);
          mo::clip_gradients(list, 0.1, norm);
          REQUIRE(optimiser.step(parameters, 1e-2, norm));
        }
        mo::save_checkpoint(ctx.world(), save, slices());
      },
      {.deadline = std::chrono::seconds(60)}, {.data = 2, .pipeline = stages, .expert = 2});
}

}  // namespace

TEST_CASE("a matrix that embedding and head share is trained and saved as one, whatever the stages they are on") {
  scratch_folder const folder;
  std::string const saved = folder.file("saved"), uncut = folder.file("uncut"), copied = folder.file("copied"),
                    resumed = folder.file("resumed");
  train_tied(2, 0, 2, "", saved);
  train_tied(1, 0, 4, "", uncut);
  auto const tensors = mo::read_safetensors(mo::detail::posix_file::open_to_read(saved)).tensors;
  CHECK(tensors.contains("table"));
  CHECK(tensors.contains("table.second_moment"));
  CHECK_FALSE(tensors.contains("layers.7.table"));
  CHECK(contents(saved) != contents(uncut));
  for (int const stages : {1, 2, 4}) {
    CAPTURE(stages);
    train_tied(stages, 2, 2, saved, copied);
    CHECK(contents(copied) == contents(saved));
    train_tied(stages, 2, 4, saved, resumed);
    CHECK(contents(resumed) == contents(uncut));
  }
}
