// SPDX-License-Identifier: Apache-2.0
// expect: mo::top_k<1> with mo::renormalise_after_drop gives the router no gradient: keep the weights as they are.
#include <moiety/moiety.hpp>

#include <ratio>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::sigmoid, mo::top_k<2>>;
#else
  using router = mo::router<mo::sigmoid, mo::top_k<1>>;
#endif
  using capacity = mo::capacity<std::ratio<1>, mo::renormalise_after_drop>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
