// SPDX-License-Identifier: Apache-2.0
// expect: on mo::cuda a gated MLP that is stored mo::in_by_out must be mo::interleaved too.
#include <moiety/cuda.cuh>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using experts = mo::gated_mlp<mo::silu, mo::in_by_out, mo::interleaved>;
#else
  using experts = mo::gated_mlp<mo::silu, mo::in_by_out>;
#endif
};

struct one_gpu : mo::deployment<> {
  using backend = mo::cuda;
};

int main() {
  mo::context<one_gpu> ctx;
  mo::moe_layer<mistaken, one_gpu> layer{ctx};
  auto const x = ctx.matrix(3, 16);
  auto y = ctx.matrix(3, 16), dx = ctx.matrix(3, 16);
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, y, dx, gradients);
}
