// SPDX-License-Identifier: Apache-2.0
// expect: a weight rule that looks at all logits needs a selection that fills every slot, as mo::top_k.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::sparsemixer<>>;
#else
  using router = mo::router<mo::softmax, mo::top_p<2>, mo::sparsemixer<>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
