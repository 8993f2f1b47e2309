// SPDX-License-Identifier: Apache-2.0
// expect: 'using element' in a deployment must name float, double, mo::bf16 or mo::fp16.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct mistaken : mo::deployment<> {
#ifdef MOIETY_CORRECT
  using element = double;
#else
  using element = int;
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
