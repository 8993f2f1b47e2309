// SPDX-License-Identifier: Apache-2.0
// Routing from logits, and the statistics of a routing. Their limit is memory in name only: read the time per token.
#include "routed.hpp"
#include "shapes.hpp"

#include <moiety/batch/statistics.hpp>

#include <array>
#include <cstdint>
#include <string>

namespace {

using namespace bench;

work of(std::int64_t tokens) {
  auto const count = static_cast<double>(tokens);
  return {0, count * (routed::experts * sizeof(float) + routed::slots * 8.0), count};
}

void route(benchmark::State& state, int threads, std::int64_t tokens) {
  routed data(tokens);
  measure<float>(state, threads, of(tokens), [&] { data.route(engine(threads)); });
}

void statistics(benchmark::State& state, int threads, std::int64_t tokens) {
  routed data(tokens);
  std::array<std::int64_t, 2> const sequences{0, tokens};
  moiety::routing_statistics sums(routed::experts, routed::slots);
  std::array<moiety::statistics_view, 1> const units{sums.view()};
  measure<float>(state, threads, of(tokens), [&] {
    moiety::kernels::accumulate(engine(threads), data.router, data.const_logits(), data.routes.view(), sequences,
                                units);
  });
}

[[maybe_unused]] bool const added = [] {
  for (std::int64_t const tokens : token_counts) {
    auto const size = "/128_experts_top_8/tokens:" + std::to_string(tokens);
    add("route" + size, [=](benchmark::State& state, int threads) { route(state, threads, tokens); });
    add("statistics" + size, [=](benchmark::State& state, int threads) { statistics(state, threads, tokens); });
  }
  return true;
}();

}  // namespace
