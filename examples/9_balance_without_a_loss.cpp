// SPDX-License-Identifier: Apache-2.0
// Loads balanced by a bias on the scores that the selection sees, as DeepSeek-V3 does: no loss, no gradient. The bias moves
// once a step, after all of its micro-batches.
#include <moiety/moiety.hpp>

#include <cstdint>
#include <iostream>

namespace mo = moiety;

struct block : mo::layer_spec<mo::dims{.hidden = 32, .ffn = 24, .experts = 16}> {
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::groups<4, 2>, mo::top_k<2>, mo::renormalised>;
};

int main() {
  constexpr std::int64_t tokens = 512, hidden = 32;
  mo::context<> ctx;
  mo::moe_layer<block> layer{ctx, {.router = {mo::selection_bias{.rate = 0.01f}}}};
  auto weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden);
  double first = 0, last = 0;
  for (int step = 0; step < 60; ++step) {
    mo::loss_ledger<block> ledger{ctx, 1};
    for (int micro = 0; micro < 2; ++micro) {
      mo::fill_normal(ctx, x, mo::seed{2}, mo::first_row{tokens * (2 * step + micro)});
      for (float& v : x) v += 0.3f;  // tokens have something in common, and so have their experts
      auto const tape = layer.forward(weights, x, y);
      ledger.record(0, tape);
    }
    auto const report = ledger.reduce();
    layer.update_selection_bias(weights, report.counts());
    last = report.max_over_mean();
    if (step == 0) first = last;
  }
  std::cout << "the largest load over the mean: " << first << " in the first step, " << last << " in the last\n";
  return last - 1 < (first - 1) / 2 ? 0 : 1;
}
