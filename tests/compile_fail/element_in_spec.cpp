// SPDX-License-Identifier: Apache-2.0
// expect: a spec says what a layer computes: 'element' belongs in a deployment.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
#else
  using element = double;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
