// SPDX-License-Identifier: Apache-2.0
// expect: an expert MLP takes at most one option of a kind.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using experts = mo::clamped_swiglu<std::ratio<7>>;
#else
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::clamped<std::ratio<5>>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
