// SPDX-License-Identifier: Apache-2.0
// expect: mo::mlp has no gate: mo::clamped, mo::up_offset, mo::concatenated and mo::interleaved are for mo::gated_mlp.
#include <moiety/moiety.hpp>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using experts = mo::mlp<mo::silu, mo::in_by_out>;
#else
  using experts = mo::mlp<mo::silu, mo::interleaved>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
