// SPDX-License-Identifier: Apache-2.0
#include <moiety/moiety.hpp>

#include <iostream>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};

// A layer as a member, with options: what most programs have.
struct model {
  mo::context<> ctx;
  mo::moe_layer<small> layer{ctx, {.losses = {mo::load_balance<>{.coefficient = 1e-2f}}}};
  mo::layer_weights<small, float> weights = layer.make_weights(mo::seed{1});
};

int main() {
  model m;
  auto x = m.ctx.matrix(8, 16), y = m.ctx.matrix(8, 16);
  mo::fill_normal(m.ctx, x, mo::seed{2});
  auto tape = m.layer.forward(m.weights, x, y);
  std::cout << "moiety " << MOIETY_VERSION_MAJOR << '.' << MOIETY_VERSION_MINOR << '\n' << m.layer.report(tape);
}
