// SPDX-License-Identifier: Apache-2.0
// expect: a packed 'using weight_layout' is for mo::host: mo::cuda reads the weights as they lie.
#include <moiety/cuda.cuh>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct mistaken : mo::deployment<> {
  using backend = mo::cuda;
#ifndef MOIETY_CORRECT
  using weight_layout = mo::packed;
#endif
};

int main() {
  mo::context<mistaken> ctx;
  mo::moe_layer<small, mistaken> layer{ctx};
  auto const x = ctx.matrix(3, 16);
  auto y = ctx.matrix(3, 16), dx = ctx.matrix(3, 16);
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, y, dx, gradients);
}
