// SPDX-License-Identifier: Apache-2.0
// expect: mo::capacity runs on mo::host, not yet on mo::cuda.
#include <moiety/cuda.cuh>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using capacity = mo::dropless;
#else
  using capacity = mo::capacity<std::ratio<1>>;
#endif
};

struct on_cuda : mo::deployment<> {
  using backend = mo::cuda;
};

int main() {
  mo::context<on_cuda> ctx;
  mo::moe_layer<mistaken, on_cuda> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(3, 16), y = ctx.matrix(3, 16);
  layer.infer(weights, x, y);
}
