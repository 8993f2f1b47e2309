// SPDX-License-Identifier: Apache-2.0
// expect: a listed loss needs the noise of the router's logits: give the router mo::logit_noise.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::logit_noise>;
#else
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#endif
  using losses = mo::losses<mo::noisy_load<>>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
