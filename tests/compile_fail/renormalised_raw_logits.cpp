// SPDX-License-Identifier: Apache-2.0
// expect: mo::renormalised needs scores that are not negative: use mo::softmax_of_selected.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::raw_logits, mo::top_k<2>, mo::softmax_of_selected>;
#else
  using router = mo::router<mo::raw_logits, mo::top_k<2>, mo::renormalised>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
