// SPDX-License-Identifier: Apache-2.0
// expect: mo::bf16x3_products multiply tokens of bf16: the deployment needs 'using element = bf16'.
#include <moiety/cuda.cuh>
#include <moiety/moiety.hpp>
#include <moiety/router/bf16x3.cuh>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct split_router : mo::deployment<> {
  using backend = mo::cuda;
  using router_products = mo::bf16x3_products;
#ifdef MOIETY_CORRECT
  using element = mo::bf16;
#endif
};

void infer(mo::context<split_router>& ctx, mo::moe_layer<small, split_router> const& layer) {
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(4, 16), y = ctx.matrix(4, 16);
  layer.infer(weights, x, y);
}

int main() { static_cast<void>(infer); }
