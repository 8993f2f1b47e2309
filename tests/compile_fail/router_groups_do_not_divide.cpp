// SPDX-License-Identifier: Apache-2.0
// expect: mo::groups<G, Kept> needs G to divide dims.experts + dims.zero_experts.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::groups<4, 2>, mo::top_k<1>>;
#else
  using router = mo::router<mo::softmax, mo::groups<3, 2>, mo::top_k<1>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
