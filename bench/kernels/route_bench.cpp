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

work of(std::int64_t tokens, std::int64_t experts) {
  auto const count = static_cast<double>(tokens);
  return {0, count * (static_cast<double>(experts) * sizeof(float) + routed::slots * 8.0), count};
}

void route(benchmark::State& state, int threads, std::int64_t tokens, std::int64_t experts) {
  routed data(tokens, experts);
  measure<float>(state, threads, of(tokens, experts), [&] { data.route(engine(threads)); });
}

void statistics(benchmark::State& state, int threads, std::int64_t tokens, std::int64_t experts) {
  routed data(tokens, experts);
  moiety::statistics_table sums(experts);
  measure<float>(state, threads, of(tokens, experts), [&] {
    moiety::kernels::accumulate(engine(threads), data.router, data.const_logits(), data.routes.view(), sums.view());
  });
}

[[maybe_unused]] bool const added = [] {
  for (std::int64_t const experts : {64, 128})
    for (std::int64_t const tokens : token_counts) {
      auto const size = '/' + std::to_string(experts) + "_experts_top_8/tokens:" + std::to_string(tokens);
      add("route" + size, [=](benchmark::State& state, int threads) { route(state, threads, tokens, experts); });
      add("statistics" + size,
          [=](benchmark::State& state, int threads) { statistics(state, threads, tokens, experts); });
    }
  return true;
}();

}  // namespace
