// SPDX-License-Identifier: Apache-2.0
// expect: mo::router takes groups at most once.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::groups<2, 1>>;
#else
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::groups<2, 1>, mo::groups<4, 2>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
