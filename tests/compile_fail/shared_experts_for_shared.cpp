// SPDX-License-Identifier: Apache-2.0
// expect: a spec names its shared experts 'shared', not 'shared_experts'.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using shared = mo::shared_experts<1>;
#else
  using shared_experts = mo::shared_experts<1>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
