// SPDX-License-Identifier: Apache-2.0
// expect: a selection that looks at all tokens of a call, as mo::expert_choice, lets a token's experts depend on later tokens: a causal spec cannot use it.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  static constexpr bool causal = true;
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#else
  using router = mo::router<mo::softmax, mo::token_rounding<2>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
