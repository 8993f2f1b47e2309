// SPDX-License-Identifier: Apache-2.0
// expect: mo::fp8_products quantise float, bf16 and fp16: 'using element = double' has other products.
#include <moiety/experts/fp8.hpp>
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::deployment<> {
  using expert_products = mo::fp8_products;
#ifndef MOIETY_CORRECT
  using element = double;
#endif
};

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

int main() {
  mo::context<mistaken> ctx;
  mo::moe_layer<small, mistaken> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  mo::matrix<mistaken::element> x(4, 16), y(4, 16);
  layer.infer(weights, x, y);
}
