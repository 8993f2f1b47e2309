// SPDX-License-Identifier: Apache-2.0
// expect: mo::sinkhorn works on the logits: it takes no selection bias and no groups.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::sinkhorn<2>>;
#else
  using router = mo::router<mo::softmax, mo::sinkhorn<2>, mo::groups<2, 1>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
