// SPDX-License-Identifier: Apache-2.0
// expect: 'using numerics' in a deployment must name mo::numerics::invariant or mo::numerics::fastest.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct quick : mo::deployment<> {
#ifdef MOIETY_CORRECT
  using numerics = mo::numerics::fastest;
#else
  using numerics = mo::host;
#endif
};

int main() {
  mo::context<quick> ctx;
  mo::moe_layer<small, quick> const layer{ctx};
  return layer.input_width() == 16 ? 0 : 1;
}
