// SPDX-License-Identifier: Apache-2.0
// One layer, forward and backward, and what its router did.
#include <moiety/moiety.hpp>

#include <iostream>

namespace mo = moiety;

struct mine : mo::layer_spec<mo::dims{.hidden = 64, .ffn = 128, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

int main() {
  mo::context<> ctx;  // host, float, one rank
  mo::moe_layer<mine> layer{ctx, {.losses = {mo::load_balance<>{.coefficient = 1e-2f}}}};
  auto weights = layer.make_weights(mo::seed{17});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(256, 64), y = ctx.matrix(256, 64), dy = ctx.matrix(256, 64), dx = ctx.matrix(256, 64);
  mo::fill_normal(ctx, x, mo::seed{1});
  mo::fill_normal(ctx, dy, mo::seed{2});

  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, dy, dx, gradients);
  std::cout << mo::describe(layer, mo::tokens{256}) << layer.report(tape);
}
