// SPDX-License-Identifier: Apache-2.0
// expect: mo::capacity takes one option of a kind.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using capacity = mo::capacity<std::ratio<1>, mo::drop::position>;
#else
  using capacity = mo::capacity<std::ratio<1>, mo::drop::position, mo::drop::random>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
