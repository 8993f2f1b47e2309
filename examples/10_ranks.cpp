// SPDX-License-Identifier: Apache-2.0
// A layer trained on one rank, and on four: threads that hold two of its eight experts each. Losses are the same to the bit
// before the first update; weights are the same at the end, but for the rounding of sums over ranks.
#include <moiety/moiety.hpp>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <vector>

namespace mo = moiety;

struct block : mo::layer_spec<mo::dims{.hidden = 32, .ffn = 24, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<>>;
};
struct four_ranks : mo::deployment<mo::layout{.data = 4, .expert = 4}> {};

template <class Deployment> auto train() {
  return mo::run<Deployment>([](mo::context<Deployment>& ctx) {
    int const mine = 256 / ctx.stage().size(), first = mine * ctx.stage().rank();  // tokens of this rank
    mo::moe_layer<block, Deployment> layer{ctx, {.losses = {mo::load_balance<>{.coefficient = 1e-2f}}}};
    auto weights = layer.make_weights(mo::seed{1});
    auto gradients = layer.make_gradients();
    mo::sharded_adamw<float, typename mo::context<Deployment>::communicator> optimiser{mo::groups_of(ctx)};
    auto x = ctx.matrix(mine, 32), y = ctx.matrix(mine, 32), dy = ctx.matrix(mine, 32), dx = ctx.matrix(mine, 32);
    std::vector<double> balance;  // before each step
    std::vector<float> trained;   // weights at the end
    for (int step = 0; step < 6; ++step) {
      mo::fill_normal(ctx, x, mo::seed{2}, mo::first_row{256 * step + first});
      auto tape = layer.forward(weights, x, y);
      balance.push_back(layer.report(tape).template value<mo::load_balance<>>());
      for (std::size_t i = 0; i < y.size(); ++i) dy.data()[i] = y.data()[i] - x.data()[i];  // it learns to copy
      gradients.reset();
      layer.backward(weights, tape, dy, dx, gradients);
      auto const list = mo::gradients_of(gradients);
      mo::reduce_gradients(list, mo::groups_of(ctx), {.where = mo::summed::slices});
      mo::normalise(list, mo::total_weight(ctx.world(), mine));
      double const norm = mo::global_norm(ctx, gradients);
      mo::clip_gradients(list, 0.2, norm);
      optimiser.step(mo::parameters_of(weights, gradients), 1e-2, norm);
    }
    mo::for_each_parameter(weights, [&](mo::parameter const& p, auto part) {
      auto const whole = (p.of_experts ? ctx.expert() : ctx.expert_tensor()).template all_gather_v<float>(part);
      trained.insert(trained.end(), whole.begin(), whole.end());
    });
    return std::pair(balance, trained);
  });
}

int main() {
  auto const [balance, weights] = train<mo::deployment<>>();
  auto const [balance4, weights4] = train<four_ranks>();
  std::cout << "balance loss on one rank, on four\n";
  for (std::size_t s = 0; s < balance.size(); ++s) std::cout << balance[s] << "   " << balance4[s] << '\n';
  float apart = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) apart = std::max(apart, std::abs(weights[i] - weights4[i]));
  std::cout << weights.size() << " weights, " << apart << " apart at most\n";
  return balance[0] == balance4[0] && weights.size() == weights4.size() && apart < 1e-5f ? 0 : 1;
}
