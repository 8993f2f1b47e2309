// SPDX-License-Identifier: Apache-2.0
// A model of unlike layers on two stages: a dense layer of our own, and MoE layers of two specs, the second of which computes
// its forward again in backward instead of keeping what that needs. It learns to give small rows.
#include "own_block.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <array>
#include <cstddef>
#include <iostream>

namespace mo = moiety;

struct few : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};
struct many : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 8, .experts = 16}> {
  using router = mo::router<mo::sigmoid, mo::top_k<4>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
struct two_stages : mo::deployment<mo::layout{.pipeline = 2}> {};

using few_layer = mo::moe_layer<few, two_stages>;
using many_layer = mo::moe_layer<many, two_stages>;
using model = mo::block_stack<two_stages, residual, few_layer, mo::recomputed<many_layer>>;

double fall_of_loss(mo::context<two_stages>& ctx) {
  constexpr auto plan = mo::schedule_for<mo::one_f_one_b, mo::pipeline_shape{.ranks = 2, .microbatches = 4}>;
  constexpr auto split = mo::split_layers(std::array{1, 4, 1, 4}, 2);  // costs: residual, few, residual, many
  model stage{ctx, split, [&](int layer) -> model::any_block {
                if (layer == 1) return few_layer{ctx, {.losses = {mo::load_balance<>{.coefficient = 1e-2f}}}};
                if (layer == 3) return mo::recomputed{ctx, many_layer{ctx}};
                return residual{16};
              }};
  auto weights = stage.make_weights(mo::seed{1});
  auto gradients = stage.make_gradients();
  mo::pipeline_engine engine{ctx, plan, stage};
  double first = 0, last = 0;
  for (int step = 0; step < 20; ++step) {
    gradients.reset();
    mo::model_report<few, many> const report = engine.step(
        weights, gradients, mo::equal_batches(4, 32),
        [&](int microbatch, auto x) { mo::fill_normal(ctx, x, mo::seed{100 + microbatch}); },
        [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, step);
    mo::for_each_parameter(weights, gradients, [&](mo::parameter const&, auto w, auto g) {
      for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 2e-2f * g[i] / static_cast<float>(engine.task().weight);
    });
    last = engine.task().sum / engine.task().weight;
    if (step == 0) first = last;
    if (ctx.pipeline().rank() == 0 && step % 19 == 0) std::cout << "square error " << last << '\n' << report;
  }
  return first - last;
}

int main() { return mo::run<two_stages>(fall_of_loss) > 0 ? 0 : 1; }
