// SPDX-License-Identifier: Apache-2.0
// expect: the groups of mo::device_balance and mo::communication_balance must divide dims.experts + dims.zero_experts.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 12}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using losses = mo::losses<mo::device_balance<4>>;
#else
  using losses = mo::losses<mo::device_balance<8>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
