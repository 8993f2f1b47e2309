// SPDX-License-Identifier: Apache-2.0
// expect: the loads that mo::noisy_load expects are those of mo::top_k, without selection bias and groups.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::constant_logit_noise<>>;
#else
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::constant_logit_noise<>, mo::selection_bias>;
#endif
  using losses = mo::losses<mo::noisy_load<>>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
