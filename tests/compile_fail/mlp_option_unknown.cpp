// SPDX-License-Identifier: Apache-2.0
// expect: an expert MLP was given an option that is none of experts/mlp_options.hpp.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using experts = mo::gated_mlp<mo::silu>;
#else
  using experts = mo::gated_mlp<mo::silu, mo::softmax>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
