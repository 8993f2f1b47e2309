// SPDX-License-Identifier: Apache-2.0
// Weights in memory that a framework owns, gradients summed over micro-batches, one plain SGD step a time.
#include <moiety/moiety.hpp>

#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace mo = moiety;

struct block : mo::layer_spec<mo::dims{.hidden = 48, .ffn = 64, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

int main() {
  mo::context<> ctx;
  mo::moe_layer<block> layer{ctx, {.losses = {mo::load_balance<>{.coefficient = 1e-2f}}}};  // router_z: measured only

  std::map<std::string, std::vector<float>> memory;
  auto weights = layer.bind_weights(
      [&](mo::parameter const& p) { return memory[p.name].assign(p.size(), 0.0f), memory[p.name].data(); });
  layer.initialise(weights, mo::seed{17});
  auto gradients = layer.make_gradients();

  auto x = ctx.matrix(64, 48), y = ctx.matrix(64, 48), dy = ctx.matrix(64, 48), dx = ctx.matrix(64, 48);
  double error = 0, first = 0;
  for (int step = 0; step < 30; ++step) {
    mo::loss_ledger<block> ledger{ctx, 1};
    gradients.reset();  // the next backward overwrites, later ones add
    error = 0;
    for (int micro = 0; micro < 2; ++micro) {
      mo::fill_normal(ctx, x, mo::seed{5}, mo::first_row{64 * micro});
      auto tape = layer.forward(weights, x, y, {.first_row = 64 * micro, .step = step});
      for (std::size_t i = 0; i < y.size(); ++i) {  // the task: y = -x
        float const miss = y.data()[i] + x.data()[i];
        error += 0.5 * static_cast<double>(miss) * miss;
        dy.data()[i] = miss;  // the gradient of a sum
      }
      layer.backward(weights, tape, dy, dx, gradients);
      ledger.record(0, tape);
    }
    mo::for_each_parameter(weights, gradients, [&](mo::parameter const&, auto w, auto g) {
      for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.05f * g[i] / 128;  // divided once, by all tokens
    });
    if (step == 0) first = error;
    if (step % 10 == 9)
      std::cout << "step " << step + 1 << ": error " << error / 128 << " a token\n" << ledger.reduce();
  }
  return error < first ? 0 : 1;
}
