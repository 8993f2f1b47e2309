// SPDX-License-Identifier: Apache-2.0
// expect: dims needs hidden, ffn and experts of at least 1.
#include <moiety/moiety.hpp>

namespace mo = moiety;

#ifdef MOIETY_CORRECT
inline constexpr mo::dims size{.hidden = 16, .ffn = 32, .experts = 4};
#else
inline constexpr mo::dims size{.hidden = 16, .experts = 4};
#endif

struct mistaken : mo::layer_spec<size> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
