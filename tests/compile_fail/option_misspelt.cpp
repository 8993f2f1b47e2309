// SPDX-License-Identifier: Apache-2.0
// A misspelt option: the compiler itself names it where the options are named.
// expect-regex: 'loss'
// errors: 3
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::router_z>;
};

int main() {
  mo::context<> ctx;
#ifdef MOIETY_CORRECT
  mo::moe_layer<small> layer{ctx, mo::layer_options<small>{.losses = {mo::router_z{.coefficient = 1e-3f}}}};
#else
  mo::moe_layer<small> layer{ctx, mo::layer_options<small>{.loss = {mo::router_z{.coefficient = 1e-3f}}}};
#endif
}
