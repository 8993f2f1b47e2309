// SPDX-License-Identifier: Apache-2.0
// expect: the training room works on memory of the host: give it weights and gradients of mo::cuda as mo::host_copy
#include <moiety/cuda.cuh>
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct on_cuda : mo::deployment<> {
  using backend = mo::cuda;
};

double norm(mo::context<on_cuda>& ctx, mo::moe_layer<small, on_cuda>& layer) {
  auto gradients = layer.make_gradients();
#ifdef MOIETY_CORRECT
  mo::host_copy here(ctx, gradients);
  here.load();
  return mo::global_norm(ctx, here);
#else
  return mo::global_norm(ctx, gradients);
#endif
}

int main() { static_cast<void>(norm); }
