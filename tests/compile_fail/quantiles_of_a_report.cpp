// SPDX-License-Identifier: Apache-2.0
// expect: update_selection_biases is of routers with mo::selection_bias: mo::quantile_bias takes its step from the scores of all tokens, which tapes have and reports have not.
#include <moiety/moiety.hpp>

#include <vector>

namespace mo = moiety;

struct mistaken : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
#ifdef MOIETY_CORRECT
  using router = mo::router<mo::softmax, mo::selection_bias, mo::top_k<2>>;
#else
  using router = mo::router<mo::softmax, mo::quantile_bias, mo::top_k<2>>;
#endif
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<mistaken> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  mo::loss_report<mistaken> const report({}, {});
  mo::update_selection_biases(ctx, mo::layer_options<mistaken>{}, weights, report);
}
