// SPDX-License-Identifier: Apache-2.0
// expect: this deployment names mo::cuda: include <moiety/cuda.cuh>, compiled by nvcc.
#ifdef MOIETY_CORRECT
#include <moiety/cuda.cuh>
#else
#include <moiety/moiety.hpp>
#endif

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct mistaken : mo::deployment<> {
  using backend = mo::cuda;
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
