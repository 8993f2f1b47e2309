// SPDX-License-Identifier: Apache-2.0
// expect: a listed loss needs probabilities, which the score rule of this router does not have.
#include <moiety/moiety.hpp>

namespace mo = moiety;

/// Scores are the logits themselves.
struct as_they_are {
  static constexpr bool has_probabilities = false;
  void forward(mo::score_row auto&) const {}
  void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<as_they_are, mo::top_k<2>>;
#ifdef MOIETY_CORRECT
  using losses = mo::losses<mo::router_z, mo::load<>>;
#else
  using losses = mo::losses<mo::router_z, mo::load_balance<>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
}
