// SPDX-License-Identifier: Apache-2.0
// expect: mo::top_p needs a score rule whose rows sum to one, as mo::softmax, and nothing that changes them.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_p<2>>;
#else
  using router = mo::router<mo::sigmoid, mo::top_p<2>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
