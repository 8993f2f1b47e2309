// SPDX-License-Identifier: Apache-2.0
// expect: mo::capacity over the tokens of several ranks runs on mo::host, not yet on mo::cuda.
#include <moiety/cuda.cuh>
#include <moiety/moiety.hpp>

#include <ratio>

namespace mo = moiety;

struct limited : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using capacity = mo::capacity<std::ratio<5, 4>>;
};

#ifdef MOIETY_CORRECT
struct on_cuda : mo::deployment<> {
#else
struct on_cuda : mo::deployment<mo::layout{.data = 2}> {
#endif
  using backend = mo::cuda;
};

void forward(mo::context<on_cuda>& ctx) {
  mo::moe_layer<limited, on_cuda> layer{ctx};
  auto const x = ctx.matrix(3, 16);
  auto y = ctx.matrix(3, 16);
  layer.infer(layer.make_weights(mo::seed{1}), x, y);
}

int main() { static_cast<void>(forward); }
