// SPDX-License-Identifier: Apache-2.0
// expect: this deployment has more than one rank, and its transport mo::self has one.
#include <moiety/moiety.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
inline constexpr mo::layout ranks{};
#else
inline constexpr mo::layout ranks{.data = 2};
#endif

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

struct alone : mo::deployment<ranks> { using transport = mo::self; };

int main() {
  mo::context<alone> ctx;
  mo::moe_layer<small, alone> layer{ctx};
}
