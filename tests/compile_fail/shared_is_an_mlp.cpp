// SPDX-License-Identifier: Apache-2.0
// expect: 'using shared' in a spec must name mo::shared_experts<Count, ...>.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using shared = mo::shared_experts<1, mo::gated_mlp<mo::silu>>;
#else
  using shared = mo::gated_mlp<mo::silu>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
