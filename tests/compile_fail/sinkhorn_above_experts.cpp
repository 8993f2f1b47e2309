// SPDX-License-Identifier: Apache-2.0
// expect: mo::top_k<K> needs 1 <= K <= dims.experts + dims.zero_experts.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::sinkhorn<4>>;
#else
  using router = mo::router<mo::softmax, mo::sinkhorn<5>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
