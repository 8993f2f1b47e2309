// SPDX-License-Identifier: Apache-2.0
// expect: mo::capacity needs a ratio above 0.
#include <moiety/moiety.hpp>

#include <ratio>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using capacity = mo::capacity<std::ratio<1>>;
#else
  using capacity = mo::capacity<std::ratio<-1, 2>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
