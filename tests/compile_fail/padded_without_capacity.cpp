// SPDX-License-Identifier: Apache-2.0
// expect: mo::padded_all_to_all needs a spec with 'using capacity = mo::capacity<...>', which bounds the rows of an expert.
#include <moiety/moiety.hpp>

#include <moiety/dispatcher/padded.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using capacity = mo::capacity<std::ratio<5, 4>>;
#endif
};
struct spread : mo::deployment<mo::layout{.data = 2, .expert = 2}> {
  using dispatcher = mo::padded_all_to_all<64>;
};

void make(mo::context<spread>& ctx) { mo::moe_layer<small, spread> layer{ctx}; }

int main() { static_cast<void>(make); }
