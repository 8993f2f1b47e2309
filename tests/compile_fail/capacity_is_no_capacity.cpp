// SPDX-License-Identifier: Apache-2.0
// expect: 'using capacity' in a spec must name mo::dropless or mo::capacity<std::ratio<...>, ...>.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using capacity = mo::dropless;
#else
  using capacity = std::ratio<5, 4>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
