// SPDX-License-Identifier: Apache-2.0
// expect: mo::router takes exactly one selection, as in mo::router<mo::softmax, mo::top_k<2>>.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#else
  using router = mo::router<mo::softmax, mo::top_k<1>, mo::top_k<2>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
