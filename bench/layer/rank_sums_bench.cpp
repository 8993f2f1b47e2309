// SPDX-License-Identifier: Apache-2.0
// What the exact statistics of all ranks cost beside the forward that they are part of.
#include "layers.hpp"
#include "ranks.hpp"

#include <moiety/batch/statistics.hpp>
#include <moiety/layer/rank_sums.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace {

using namespace bench;

using spec = plain_spec<512, 256, 128, 8>;
using deployment = moiety::deployment<moiety::dynamic>;
constexpr std::int64_t tokens = 4096;  // of each rank

/// Nothing counted, so that adding again and again stays in range.
void forget(moiety::batch_statistics const& units) {
  std::fill_n(units.units, units.count, moiety::unit_statistics{});
  std::fill_n(units.expert_units, units.count * units.experts, moiety::expert_statistics{});
  *units.states = {};
}

void rank_sums(benchmark::State& state, int ranks, bool whole_forward) {
  double busy = 0;
  on_ranks<deployment>(ranks, [&](moiety::context<deployment>& ctx) {
    moiety::moe_layer<spec, deployment> const layer{ctx};
    auto const weights = layer.make_weights(moiety::seed{1});
    auto x = ctx.matrix(tokens, spec::size.hidden), y = ctx.matrix(tokens, spec::size.hidden);
    moiety::fill_normal(ctx, x, moiety::seed{2}, moiety::first_row{ctx.stage().rank() * tokens});
    auto tape = layer.forward(weights, x.view(), y.view());
    double share = 0;
    if (whole_forward) {
      share = measure_on_ranks(state, ctx.stage(), 1, [&] { layer.forward(weights, x.view(), y.view()); });
    } else {
      forget(tape.units());
      share = measure_on_ranks(state, ctx.stage(), 20, [&] { moiety::sum_statistics(ctx, tape); });
    }
    if (ctx.stage().rank() == 0) busy = share;
  });
  double const all_tokens = static_cast<double>(tokens * ranks);
  auto const statistics = static_cast<double>(ranks * ranks * spec::size.experts *
                                              static_cast<std::int64_t>(sizeof(moiety::expert_statistics)));
  work todo{0, 2 * statistics, all_tokens, traffic::copy};
  if (whole_forward) todo = layer_work<spec, float>(tokens * ranks, 1);
  report<float>(state, std::min(ranks, moiety::available_processors()), todo, busy);
}

[[maybe_unused]] bool const added = [] {
  for (int const ranks : {2, 4})
    for (bool const whole_forward : {true, false})
      add(std::string("rank_sums/") + (whole_forward ? "forward" : "statistics") +
              "/tokens:4096/ranks:" + std::to_string(ranks),
          std::min(ranks, moiety::available_processors()),
          [=](benchmark::State& state) { rank_sums(state, ranks, whole_forward); });
  return true;
}();

}  // namespace
