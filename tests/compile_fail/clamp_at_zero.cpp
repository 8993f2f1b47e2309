// SPDX-License-Identifier: Apache-2.0
// expect: mo::clamped<L> needs a std::ratio above 0.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using experts = mo::limited_swiglu<std::ratio<1, 2>>;
#else
  using experts = mo::limited_swiglu<std::ratio<0>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
