// SPDX-License-Identifier: Apache-2.0
// expect: mo::gated_mlp and mo::mlp need an activation: static value(v) and derivative(v) for float and double.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct cube {
  static auto value(auto v) { return v * v * v; }
#ifdef MOIETY_CORRECT
  static auto derivative(auto v) { return 3 * v * v; }
#endif
};

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using experts = mo::gated_mlp<cube>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
