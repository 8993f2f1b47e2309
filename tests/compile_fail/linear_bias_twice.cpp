// SPDX-License-Identifier: Apache-2.0
// expect: mo::router takes mo::linear_bias at most once.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::linear_bias>;
#else
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::linear_bias, mo::linear_bias>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
