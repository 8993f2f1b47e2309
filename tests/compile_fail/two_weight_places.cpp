// SPDX-License-Identifier: Apache-2.0
// expect: mo::router takes at most one of mo::on_output, mo::on_activation and mo::on_input.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::on_input>;
#else
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::on_input, mo::on_output>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
