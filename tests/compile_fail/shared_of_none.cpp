// SPDX-License-Identifier: Apache-2.0
// expect: mo::shared_experts needs at least one expert of a width of at least 1.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using shared = mo::shared_experts<1>;
#else
  using shared = mo::shared_experts<0>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
