// SPDX-License-Identifier: Apache-2.0
// expect: mo::tf32_products multiply floats: the deployment needs 'using element = float'.
#include <moiety/cuda.cuh>
#include <moiety/experts/tf32.cuh>
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct in_tf32 : mo::deployment<> {
  using backend = mo::cuda;
  using expert_products = mo::tf32_products;
#ifndef MOIETY_CORRECT
  using element = mo::bf16;
#endif
};

void infer(mo::context<in_tf32>& ctx, mo::moe_layer<small, in_tf32> const& layer) {
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(4, 16), y = ctx.matrix(4, 16);
  layer.infer(weights, x, y);
}

int main() { static_cast<void>(infer); }
