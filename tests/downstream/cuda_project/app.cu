// SPDX-License-Identifier: Apache-2.0
// 77 where there is no device.
#include <moiety/cuda.cuh>

#include <iostream>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
struct one_gpu : mo::deployment<> {
  using backend = mo::cuda;
};

int main() try {
  mo::context<one_gpu> ctx;
  mo::moe_layer<small, one_gpu> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(8, 16), y = ctx.matrix(8, 16);
  mo::fill_normal(ctx, x, mo::seed{2});
  layer.infer(weights, x, y);
  ctx.synchronize();
} catch (mo::cuda_error const& e) {
  std::cerr << e.what() << '\n';
  return 77;
}
