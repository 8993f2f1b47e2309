// SPDX-License-Identifier: Apache-2.0
// expect: mo::losses takes communication_balance of one number of device groups.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using losses = mo::losses<mo::communication_balance<4, 2>, mo::communication_balance<4, 2, mo::over::sequence>>;
#else
  using losses = mo::losses<mo::communication_balance<4, 2>, mo::communication_balance<2, 2>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
