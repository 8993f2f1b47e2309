// SPDX-License-Identifier: Apache-2.0
// A balance loss over a global batch that is accumulated from micro-batches. Its counts are not known when the first of
// them runs backward, so the gradient takes those of the last step; what is reported is of the whole batch all the same.
#include <moiety/moiety.hpp>

#include <cstddef>
#include <cstdint>
#include <iostream>

namespace mo = moiety;

using balance = mo::load_balance<mo::over::global_batch, mo::counts::previous_step>;

struct block : mo::layer_spec<mo::dims{.hidden = 32, .ffn = 24, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<balance, mo::load<mo::over::global_batch>>;
};

int main() {
  constexpr std::int64_t tokens = 64, hidden = 32, experts = 8;
  // What Hugging Face calls 0.02, for a model of this one layer.
  constexpr mo::loss_shape shape{.experts = experts, .slots = 2, .layers = 1};
  auto const coefficient = mo::convert_coefficient<mo::convention::huggingface, mo::convention::unit>(0.02, shape);
  mo::context<> ctx;
  mo::moe_layer<block> layer{ctx, {.losses = {balance{.coefficient = static_cast<float>(coefficient)}}}};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dy = ctx.matrix(tokens, hidden),
       dx = ctx.matrix(tokens, hidden);

  double first = 0, last = 0;
  mo::step_counts counts(experts);
  for (int step = 0; step < 20; ++step) {
    mo::loss_ledger<block> ledger{ctx, 1};
    gradients.reset();
    for (int micro = 0; micro < 4; ++micro) {
      mo::fill_normal(ctx, x, mo::seed{2}, mo::first_row{tokens * micro});
      for (float& v : x) v += 0.3f;  // tokens have something in common, and so have their experts
      auto tape = layer.forward(weights, x, y, {.counts = &counts});
      counts.add(tape.statistics());
      layer.backward(weights, tape, dy, dx, gradients);
      ledger.record(0, tape);
    }
    counts.next_step();
    mo::for_each_parameter(weights, gradients, [](mo::parameter const& p, auto w, auto g) {
      for (std::size_t i = 0; i < p.size(); ++i) w[i] -= 10 * g[i] / (4 * tokens);
    });
    auto const report = ledger.reduce();
    last = report.value<balance>();
    if (step == 0) first = last;
    if (step % 10 == 0) std::cout << "step " << step << ": " << report;
  }
  return last < first - 0.01 ? 0 : 1;
}
