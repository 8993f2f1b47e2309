// SPDX-License-Identifier: Apache-2.0
// A step of a pipeline on two ranks whose micro-batches hold sequences and padding, and when each rank did what, as a CSV.
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

namespace mo = moiety;

struct block : mo::layer_spec<mo::dims{.hidden = 32, .ffn = 64, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>>;
};
struct two_stages : mo::deployment<mo::layout{.pipeline = 2}> {};

/// Two sequences of 32 tokens in every micro-batch; the last eight of the second are padding.
std::array<std::int64_t, 3> const two_sequences{0, 32, 64};
std::vector<std::uint8_t> const without_padding = [] {
  std::vector<std::uint8_t> real(64, 1);
  for (std::size_t t = 56; t < 64; ++t) real[t] = 0;
  return real;
}();

std::string traced_step(mo::context<two_stages>& ctx) {
  constexpr auto plan = mo::schedule_for<mo::zb_h1, mo::pipeline_shape{.ranks = 2, .microbatches = 4}>;
  constexpr auto split = mo::split_layers(std::array{1, 1, 1, 1}, 2);
  mo::moe_stack<block, two_stages> stage{ctx, split, {.losses = {mo::load_balance<mo::over::sequence>{1e-2f}}}};
  auto const weights = stage.make_weights(mo::seed{3});
  auto gradients = stage.make_gradients();
  auto const inputs = [&](int microbatch, auto x) { mo::fill_normal(ctx, x, mo::seed{100 + microbatch}); };
  auto const loss = [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); };
  mo::pipeline_engine engine{ctx, plan, stage};

  mo::microbatches batches = mo::equal_batches(4, 64);
  batches.describe([](int) { return mo::batch{.sequences = two_sequences, .mask = without_padding}; });

  mo::timeline times;  // mo::timeline{clock}: by a clock of yours
  engine.record(times);
  auto const report = engine.step(weights, gradients, batches, inputs, loss);
  auto const all = mo::timelines(ctx.pipeline(), times);  // of all ranks, on every rank
  return report.tokens() == 4 * 56 ? mo::to_csv(all) : std::string();
}

int main() {
  std::string const csv = mo::run<two_stages>(traced_step);
  std::cout << csv;
  return csv.empty() ? 1 : 0;
}
