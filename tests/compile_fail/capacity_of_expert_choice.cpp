// SPDX-License-Identifier: Apache-2.0
// expect: mo::capacity needs a selection with a number of slots, as mo::top_k: expert choice and token rounding bound their loads themselves.
#include <moiety/moiety.hpp>

#include <ratio>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#else
  using router = mo::router<mo::softmax, mo::expert_choice<2>>;
#endif
  using capacity = mo::capacity<std::ratio<5, 4>>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
