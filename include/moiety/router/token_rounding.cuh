// SPDX-License-Identifier: Apache-2.0
// Token rounding on a CUDA device, without a host read. The tokens of the host.
//
//   mark      a warp a token: flags of its K largest scores
//   measure   a block an expert: f, who could come, and the sums of scores where the rounding reads them, in the order of
//             the host
//   round     one block: what each f becomes, expert after expert
//   choose    a block an expert: drops or adds tokens by a radix select
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/largest.cuh>
#include <moiety/kernels/cuda/portable/route.cuh>
#include <moiety/kernels/cuda/portable/warp_row.cuh>
#include <moiety/router/batch_selection.cuh>
#include <moiety/router/batch_selection.hpp>
#include <moiety/router/token_rounding.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

namespace kernels::gpu {

/// chosen[e][t], 0 before, of the K largest scores of each token.
template <int K, class S, int N>
__global__ void __launch_bounds__(route_threads) mark_largest(batch_of_scores<S> const of, bool* chosen) {
  for (std::int64_t t = first_token(); t < of.scores.rows(); t += token_stride()) {
    if (!of.takes_part(t)) continue;
    registers_of<S, N> values = {};
    warp_row<S, N> const row(values, static_cast<int>(of.scores.cols()));
    load_row(row, of.scores.row(t));
    row.template largest<K>([&](int, int e) {
      if (e >= 0 && lane_of_thread() == 0) chosen[e * of.scores.rows() + t] = true;
    });
  }
}

/// One expert's tokens, parted into those that chose it and the others.
template <class S> struct rounded_column : expert_column<S> {
  using typename expert_column<S>::key_type;
  bool const* chosen;  // [T]

  /// Whether a token is one of its own, or one of the others that may join them.
  __device__ bool is_of(bool own, std::int64_t t) const { return own ? chosen[t] : !chosen[t] && this->can_come(t); }
  /// The best `count` of either.
  __device__ __forceinline__ largest_cut<key_type> best(bool own, std::int64_t count) const {
    return find_cut<key_type>(this->tokens(), count,
                              [&](std::int64_t t) { return is_of(own, t) ? this->key(t) : key_type{0}; });
  }
  __device__ bool before(std::int32_t a, std::int32_t b) const {
    S const of_a = this->score(a), of_b = this->score(b);
    return of_a != of_b ? of_a > of_b : a < b;
  }
};

template <class S> __device__ rounded_column<S> column_of_block(batch_of_scores<S> const& of, bool const* chosen) {
  return {{of, blockIdx.x}, chosen + blockIdx.x * of.scores.rows()};
}

/// Σ scores of the fewer than Most tokens for which takes(t), the best first. They are listed, and the list sorted in place.
template <int Most, class S, class Takes>
__device__ __forceinline__ double sum_in_order(rounded_column<S> const& column, Takes const& takes,
                                               std::int32_t* list) {
  constexpr int each = (Most + cut_threads - 1) / cut_threads;
  __shared__ int count;
  __shared__ double total;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (std::int64_t t = threadIdx.x; t < column.tokens(); t += cut_threads)
    if (takes(t)) list[atomicAdd(&count, 1)] = static_cast<std::int32_t>(t);
  __syncthreads();
  registers_of<std::int32_t, each> mine, rank;
  MOIETY_REGISTERS
  for (int r = 0; r < each; ++r) {
    int const i = static_cast<int>(threadIdx.x) + r * cut_threads;
    mine[r] = i < count ? list[i] : -1, rank[r] = 0;
    for (int j = 0; mine[r] >= 0 && j < count; ++j) rank[r] += column.before(list[j], mine[r]) ? 1 : 0;
  }
  __syncthreads();
  MOIETY_REGISTERS
  for (int r = 0; r < each; ++r)
    if (mine[r] >= 0) list[rank[r]] = mine[r];
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += static_cast<double>(column.score(list[i]));
    total = sum;
  }
  __syncthreads();
  return total;
}

/// `lists` [E × T] is scratch.
template <class Rule, class S>
__global__ void __launch_bounds__(cut_threads, 1)
    measure_loads(Rule const rule, batch_of_scores<S> const of, bool const* chosen, std::int32_t* lists,
                  typename Rule::load* loads) {
  rounded_column<S> const column = column_of_block(of, chosen);
  int chose = 0, may_join = 0;
  for (std::int64_t t = threadIdx.x; t < column.tokens(); t += cut_threads)
    chose += column.is_of(true, t) ? 1 : 0, may_join += column.is_of(false, t) ? 1 : 0;
  chose = sum_of_block(chose), may_join = sum_of_block(may_join);
  typename Rule::load load = rule.load_of(chose, chose + may_join, of.tokens, column.expert);
  for (int side = 0; Rule::reads_scores && load.may_rise() && side < 2; ++side) {
    bool const own = side == 1;  // what rounding down would drop; of the others, what rounding up would add
    auto const cut = column.best(own, own ? load.down() : load.up() - load.chosen);
    auto const moves = [&](std::int64_t t) { return column.is_of(own, t) && cut.keeps(column.key(t), t) != own; };
    double const sum = sum_in_order<Rule::tile>(column, moves, lists + column.expert * column.tokens());
    (own ? load.dropped : load.added) = sum;
  }
  if (threadIdx.x == 0) loads[column.expert] = load;
}

/// rounded[e]: what the f of each expert becomes.
template <class Rule>
__global__ void __launch_bounds__(cut_threads, 1)
    round_loads(typename Rule::load const* loads, int experts, std::int64_t* rounded) {
  __shared__ registers_of<typename Rule::load, most_experts> all;
  for (int e = static_cast<int>(threadIdx.x); e < experts; e += cut_threads) all[e] = loads[e];
  __syncthreads();
  std::int64_t sum = 0;
  for (int e = 0; threadIdx.x == 0 && e < experts; ++e) {
    rounded[e] = all[e].rounded(sum);
    sum += rounded[e] - all[e].chosen;
  }
}

template <class Rule, class S>
__global__ void __launch_bounds__(cut_threads, 1)
    choose_rounded(batch_of_scores<S> const of, typename Rule::load const* loads, std::int64_t const* rounded,
                   bool* chosen) {
  rounded_column<S> const column = column_of_block(of, chosen);
  std::int64_t const f = loads[column.expert].chosen, count = rounded[column.expert];
  bool const rises = count > f;
  auto const cut = column.best(!rises, rises ? count - f : count);
  for (std::int64_t t = threadIdx.x; t < column.tokens(); t += cut_threads)
    chosen[column.expert * column.tokens() + t] =
        column.is_of(!rises, t) ? cut.keeps(column.key(t), t) : rises && column.chosen[t];
}

}  // namespace kernels::gpu

template <int K, int Tile, class Rounding>
template <class S>
void token_rounding<K, Tile, Rounding>::select(cuda_engine& engine, batch_of_scores<S> const& of) const {
  namespace gpu = kernels::gpu;
  std::int64_t const tokens = of.scores.rows(), experts = of.scores.cols();
  auto* const lists = reinterpret_cast<std::int32_t*>(of.workspace);
  auto* const chosen = reinterpret_cast<bool*>(lists + tokens * experts);
  auto* const loads = reinterpret_cast<load*>(engine.scratch());
  auto* const rounded = reinterpret_cast<std::int64_t*>(loads + experts);
  engine.memory().zero(chosen, tokens * experts);
  gpu::with_registers<0>(experts, [&](auto n) {
    engine.launch("token_rounding: mark", gpu::mark_largest<K, S, n()>,
                  {gpu::route_blocks(engine, tokens), gpu::route_threads}, of, chosen);
  });
  engine.launch("token_rounding: measure", gpu::measure_loads<token_rounding, S>, {experts, gpu::cut_threads}, *this,
                of, chosen, lists, loads);
  engine.launch("token_rounding: round", gpu::round_loads<token_rounding>, {1, gpu::cut_threads}, loads,
                static_cast<int>(experts), rounded);
  engine.launch("token_rounding: choose", gpu::choose_rounded<token_rounding, S>, {experts, gpu::cut_threads}, of,
                loads, rounded, chosen);
  gpu::list_tokens(engine, of, chosen);
}

}  // namespace moiety::inline MOIETY_ABI
