// SPDX-License-Identifier: Apache-2.0
// The blocks of train_lm, and the model that they make, against finite differences.
#include "../../examples/train_lm/cross_entropy.hpp"
#include "../../examples/train_lm/decoder.hpp"
#include "../../examples/train_lm/embedding.hpp"
#include "../../examples/train_lm/experts.hpp"
#include "../../examples/train_lm/head.hpp"
#include "../../examples/train_lm/model.hpp"

#include "differences.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace differences;

namespace {

using spec = lm::expert_block<64>;
static_assert(mo::model_block<lm::embedding_block<in_double>> && mo::model_block<lm::head_block<in_double>>);
static_assert(mo::block_with_losses<lm::decoder_block<spec, in_double>>);

mo::layer_options<spec> const strong{
    .losses = {mo::load_balance<>{.coefficient = 0.5f}, mo::router_z{.coefficient = 0.1f}}};

/// Every parameter of a set, for a loss that reads the weights; gradients are copied first, as the loss may write them.
template <class Function, class Weights, class Gradients>
int check_parameters(Function const& loss, Weights& weights, Gradients& gradients) {
  std::vector<std::pair<std::string, std::vector<double>>> sums;
  gradients.for_each([&](mo::parameter const& p, auto values) {
    sums.emplace_back(p.name, std::vector<double>(values.begin(), values.end()));
  });
  std::vector<std::span<double>> places;
  weights.for_each([&](mo::parameter const&, auto values) { places.push_back(values); });
  REQUIRE(places.size() == sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    CAPTURE(sums[i].first);
    check_gradient(loss, places[i], sums[i].second);
  }
  return static_cast<int>(sums.size());
}

/// Input and every parameter of a block, for the loss ⟨c, y⟩ and `more` of the tape; gradients are added to.
template <class Block, class More>
int check_block(context& ctx, Block const& block, matrix& x, mo::batch const& about, More const& more) {
  auto weights = block.make_weights(mo::seed{4}, "layers.3.");
  auto gradients = block.make_gradients();
  matrix y = ctx.matrix(x.rows(), block.output_width()), dx = ctx.matrix(x.rows(), x.cols());
  matrix const c = normal(ctx, x.rows(), block.output_width(), 7);
  auto const loss = [&] {
    auto const tape = block.forward(weights, x, y, about);
    return product(all(c), all(y)) + more(tape);
  };
  gradients.reset();
  for (int twice = 0; twice < 2; ++twice) {
    auto tape = block.forward(weights, x, y, about);
    block.backward_input(weights, tape, c, dx);
    block.backward_weights(tape, gradients);
  }
  gradients.for_each([](mo::parameter const&, auto values) {
    for (double& g : values) g /= 2;
  });
  matrix kept = ctx.matrix(x.rows(), block.output_width());
  std::copy(y.begin(), y.end(), kept.begin());
  block.infer(weights, x, y, about);
  CHECK(std::equal(y.begin(), y.end(), kept.begin()));
  if (x.cols() > 0) check_gradient(loss, {x.data(), x.size()}, all(dx));
  return check_parameters(loss, weights, gradients);
}

double nothing_more(auto const&) { return 0; }

}  // namespace

TEST_CASE("the gradient of the embedding sums over equal ids; every token needs one") {
  context ctx;
  lm::embedding_block<in_double> const block(ctx, 8);
  std::vector<std::int32_t> const ids{3, 255, 3, 0};
  matrix x = ctx.matrix(4, 0);
  CHECK(check_block(ctx, block, x, {.ids = ids}, [](auto const& tape) { return nothing_more(tape); }) == 1);
  matrix y = ctx.matrix(4, 8);
  CHECK_THROWS_AS(block.infer(block.make_weights(mo::seed{1}, ""), x, y, {}), mo::data_error);
}

TEST_CASE("the gradients of the head") {
  context ctx;
  matrix x = normal(ctx, 9, 24, 2);
  CHECK(check_block(ctx, lm::head_block<in_double>(ctx, 24), x, {}, [](auto const& t) { return nothing_more(t); }) ==
        2);
}

TEST_CASE("the gradients of a decoder, with those of its experts' losses; sequences see themselves alone") {
  context ctx;
  lm::decoder_block<spec, in_double> const block(ctx, 2, strong);
  // With these values no token is so near a tie that a step of the differences crosses it, where the loss jumps.
  matrix x = normal(ctx, 24, 64, 12);
  std::vector<std::int64_t> const sequences{0, 12, 24};
  auto const losses = [&](auto const& tape) {
    mo::loss_ledger<spec> ledger(ctx, 1);
    ledger.record(0, block.record(tape));
    return 24 * ledger.reduce().total();
  };
  CHECK(check_block(ctx, block, x, {.sequences = sequences}, losses) == 8);

  auto const weights = block.make_weights(mo::seed{4}, "");
  matrix y = ctx.matrix(24, 64), alone = ctx.matrix(12, 64);
  block.infer(weights, x, y, {.sequences = sequences});
  block.infer(weights, std::as_const(x).rows(12, 12), alone, {});
  CHECK(std::equal(alone.begin(), alone.end(), y.row(12)));
  std::vector<std::int64_t> const uneven{0, 8, 24};
  CHECK_THROWS_AS(block.infer(weights, x, y, {.sequences = uneven}), mo::data_error);
}

TEST_CASE("a decoder without tokens does nothing, and takes its gradients") {
  context ctx;
  lm::decoder_block<spec, in_double> const block(ctx, 2, strong);
  auto const weights = block.make_weights(mo::seed{4}, "");
  auto gradients = block.make_gradients();
  gradients.reset();
  matrix x = ctx.matrix(0, 64), y = ctx.matrix(0, 64), dy = ctx.matrix(0, 64), dx = ctx.matrix(0, 64);
  auto tape = block.forward(weights, x, y, {});
  block.backward_input(weights, tape, dy, dx);
  block.backward_weights(tape, gradients);
  gradients.for_each([](mo::parameter const& p, auto values) {
    CAPTURE(p.name);
    CHECK(std::all_of(values.begin(), values.end(), [](double g) { return g == 0; }));
  });
}

TEST_CASE("the whole model: every gradient is that of the cross entropies' sum plus tokens times the experts' losses") {
  context ctx;
  auto stage = lm::make_stage<spec, in_double>(ctx, {.layers = 2, .heads = 2}, strong, 1, mo::placement::loop);
  auto weights = stage.make_weights(mo::seed{4});
  auto gradients = stage.make_gradients();
  mo::schedule const plan = mo::make_schedule(mo::gpipe{}, {.ranks = 1, .microbatches = 2});
  mo::pipeline_engine engine{ctx, plan, stage};
  std::vector<std::int32_t> inputs[2], targets[2];
  for (std::uint64_t i = 0; i < 24; ++i) {
    inputs[i / 12].push_back(static_cast<std::int32_t>(mo::random_word(mo::seed{2}, 0, i) % 256));
    targets[i / 12].push_back(static_cast<std::int32_t>(mo::random_word(mo::seed{3}, 0, i) % 256));
  }
  std::vector<std::int64_t> const sequences{0, 6, 12};
  mo::microbatches batches = mo::equal_batches(2, 12);
  batches.describe([&](int m) { return mo::batch{.sequences = sequences, .ids = inputs[m]}; });
  auto const loss = [&] {
    auto const report = engine.step(weights, gradients, batches, mo::no_inputs,
                                    [&](int m, lm::view<context> logits, lm::view<context> gradient) {
                                      auto const nats = lm::cross_entropy(ctx, logits, targets[m], gradient);
                                      return mo::task_loss{std::accumulate(nats.begin(), nats.end(), 0.0), 12};
                                    });
    return engine.task().sum + 24 * report.total();
  };
  gradients.reset();
  loss();
  CHECK(check_parameters(loss, weights, gradients) == 3 + 2 * 8);
}
