// SPDX-License-Identifier: Apache-2.0
#include <moiety/moiety.hpp>

#include <iostream>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<small> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(8, 16), y = ctx.matrix(8, 16);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto tape = layer.forward(weights, x, y);
  std::cout << "moiety " << MOIETY_VERSION_MAJOR << '.' << MOIETY_VERSION_MINOR << '\n' << layer.report(tape);
}
