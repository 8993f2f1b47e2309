// SPDX-License-Identifier: Apache-2.0
// Routing from logits, beside plain ways to do it, and the statistics of a routing. Their limit is memory in name only: read
// the time per token.
#include "peers/torch.hpp"
#include "routed.hpp"
#include "shapes.hpp"

#include <moiety/batch/statistics.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

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

/// One row by the standard library: softmax, then choose(first, k-th, last, better) on indices, then weights that sum to 1.
template <class Choose>
void plain_row(float const* logits, std::int64_t experts, std::vector<float>& scores, std::vector<std::int32_t>& order,
               Choose const& choose, std::int32_t* ids, float* weights) {
  float const peak = *std::max_element(logits, logits + experts);
  float total = 0;
  for (std::size_t e = 0; e < scores.size(); ++e) total += scores[e] = std::exp(logits[e] - peak);
  for (float& s : scores) s /= total;
  std::iota(order.begin(), order.end(), 0);
  auto const better = [&](std::int32_t a, std::int32_t b) {
    float const of_a = scores[static_cast<std::size_t>(a)], of_b = scores[static_cast<std::size_t>(b)];
    return of_a != of_b ? of_a > of_b : a < b;
  };
  choose(order.begin(), order.begin() + routed::slots, order.end(), better);
  float sum = 0;
  for (std::size_t j = 0; j < routed::slots; ++j) sum += scores[static_cast<std::size_t>(order[j])];
  for (std::size_t j = 0; j < routed::slots; ++j)
    ids[j] = order[j], weights[j] = scores[static_cast<std::size_t>(order[j])] / sum;
}

template <class Choose>
void plain(benchmark::State& state, int threads, std::int64_t tokens, std::int64_t experts, Choose const& choose) {
  routed data(tokens, experts);
  measure<float>(state, threads, of(tokens, experts), [&] {
    engine(threads).for_blocks(tokens, 64, [&](std::int64_t t, std::int64_t end, int) {
      std::vector<float> scores(static_cast<std::size_t>(experts));
      std::vector<std::int32_t> order(scores.size());
      for (; t < end; ++t)
        plain_row(data.logits.row(t), experts, scores, order, choose, data.routes.ids + t * routed::slots,
                  data.routes.weights + t * routed::slots);
    });
  });
}

void torch(benchmark::State& state, int threads, std::int64_t tokens, std::int64_t experts) {
  std::vector<double> const& times = torch_route(experts, routed::slots, tokens, threads);
  if (times.empty()) return state.SkipWithError("PyTorch does not run");
  std::size_t next = 0;
  for (auto _ : state) state.SetIterationTime(times[next++ % times.size()]);
  report<float>(state, threads, of(tokens, experts), 1);
}

constexpr auto partial_sort = [](auto first, auto middle, auto last, auto const& better) {
  std::partial_sort(first, middle, last, better);
};
constexpr auto nth_element = [](auto first, auto middle, auto last, auto const& better) {
  std::nth_element(first, middle, last, better);
  std::sort(first, middle, better);
};

[[maybe_unused]] bool const added = [] {
  for (std::int64_t const experts : {64, 128})
    for (std::int64_t const tokens : token_counts) {
      auto const size = '/' + std::to_string(experts) + "_experts_top_8/tokens:" + std::to_string(tokens);
      add("route" + size, [=](benchmark::State& state, int threads) { route(state, threads, tokens, experts); });
      add("statistics" + size,
          [=](benchmark::State& state, int threads) { statistics(state, threads, tokens, experts); });
    }
  for (std::int64_t const tokens : {1024, 4096, 16384, 65536})
    add("routing/tokens:" + std::to_string(tokens) + "/moiety",
        [=](benchmark::State& state, int threads) { route(state, threads, tokens, 128); });
  std::int64_t const tokens = 16384, experts = 128;
  std::string const name = "routing/tokens:16384/";
  add(name + "partial_sort",
      [=](benchmark::State& state, int threads) { plain(state, threads, tokens, experts, partial_sort); });
  add(name + "nth_element",
      [=](benchmark::State& state, int threads) { plain(state, threads, tokens, experts, nth_element); });
  if (has_torch)
    add(name + "torch", [=](benchmark::State& state, int threads) { torch(state, threads, tokens, experts); });
  return true;
}();

}  // namespace
