// SPDX-License-Identifier: Apache-2.0
// Sinkhorn's iteration on a CUDA device, two launches each and without a host read. The order of every sum is that of the host:
// a block has the tokens of one part of Σ_t; there a thread adds up the experts of a token in turn, then one adds up the
// tokens of an expert.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/kernels/cuda/portable/largest.cuh>
#include <moiety/kernels/cuda/portable/route.cuh>
#include <moiety/kernels/cuda/portable/warp_row.cuh>
#include <moiety/router/batch_selection.cuh>
#include <moiety/router/batch_selection.hpp>
#include <moiety/router/sinkhorn.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

namespace kernels::gpu {

/// b = 1, and the number of tokens that take part.
template <class S>
__global__ void __launch_bounds__(cut_threads, 1)
    begin_balance(batch_of_scores<S> const of, double* balance, std::int64_t* participants) {
  int count = 0;
  for (std::int64_t t = threadIdx.x; t < of.scores.rows(); t += cut_threads) count += of.takes_part(t) ? 1 : 0;
  count = sum_of_block(count);
  if (threadIdx.x == 0) *participants = count;
  for (std::int64_t e = threadIdx.x; e < of.scores.cols(); e += cut_threads) balance[e] = 1;
}

/// z → C
template <class S, int N> __global__ void __launch_bounds__(route_threads) raise_logits(batch_of_scores<S> const of) {
  for (std::int64_t t = first_token(); t < of.scores.rows(); t += token_stride()) {
    if (!of.takes_part(t)) continue;
    registers_of<S, N> values = {};
    warp_row<S, N> const row(values, static_cast<int>(of.scores.cols()));
    S* const plan = of.scores.row(t);
    load_row(row, plan);
    S const peak = row.max();
    row.each([&](int e, S z) { plan[e] = moiety::exp(z - peak); });
  }
}

/// parts[block][e] = Σ C_te a_t over the tokens of the block.
template <class Rule, class S>
__global__ void __launch_bounds__(cut_threads, 1)
    share_tokens(batch_of_scores<S> const of, double const* balance, std::int64_t const* participants, double* parts) {
  __shared__ registers_of<double, static_cast<int>(Rule::block)> shares;
  std::int64_t const experts = of.scores.cols(), first = blockIdx.x * Rule::block;
  std::int64_t const left = of.scores.rows() - first, count = left < Rule::block ? left : Rule::block;
  if (threadIdx.x < count && of.takes_part(first + threadIdx.x)) {
    S const* const plan = of.scores.row(first + threadIdx.x);
    double sum = 0;
    for (std::int64_t e = 0; e < experts; ++e) sum += static_cast<double>(plan[e]) * balance[e];
    shares[threadIdx.x] = 1 / (static_cast<double>(*participants) * (sum + Rule::epsilon));
  }
  __syncthreads();
  for (std::int64_t e = threadIdx.x; e < experts; e += cut_threads) {
    double sum = 0;
    for (std::int64_t i = 0; i < count; ++i)
      if (of.takes_part(first + i)) sum += static_cast<double>(of.scores.row(first + i)[e]) * shares[i];
    parts[blockIdx.x * experts + e] = sum;
  }
}

template <class Rule>
__global__ void __launch_bounds__(route_threads)
    balance_experts(double const* parts, std::int64_t blocks, std::int64_t experts, double* balance) {
  std::int64_t const e = std::int64_t{blockIdx.x} * route_threads + threadIdx.x;
  if (e >= experts) return;
  double sum = 0;
  for (std::int64_t b = 0; b < blocks; ++b) sum += parts[b * experts + e];
  balance[e] = 1 / (static_cast<double>(experts) * (sum + Rule::epsilon));
}

template <int K, class S, int N>
__global__ void __launch_bounds__(route_threads, 1) choose_of_plan(batch_of_scores<S> const of, double const* balance) {
  int const experts = static_cast<int>(of.scores.cols());
  registers_of<double, N> balance_values = {};
  warp_row<double, N> const balances(balance_values, experts);
  load_row(balances, balance);
  double const largest = balances.max();
  for (std::int64_t t = first_token(); t < of.scores.rows(); t += token_stride()) {
    if (!of.takes_part(t)) continue;
    registers_of<S, N> values = {};
    warp_row<S, N> const row(values, experts);
    load_row(row, of.scores.row(t));
    row.map_indexed([&](S c, int e) { return static_cast<S>(static_cast<double>(c) * (balance[e] / largest)); });
    row.template largest<K>([&](int slot, int e) {
      if (lane_of_thread() == 0) of.ids[t * K + slot] = e < 0 ? no_expert : e;
    });
  }
}

}  // namespace kernels::gpu

template <int K, int Iterations>
template <class S>
void sinkhorn<K, Iterations>::select(cuda_engine& engine, batch_of_scores<S> const& of) const {
  namespace gpu = kernels::gpu;
  std::int64_t const tokens = of.scores.rows(), experts = of.scores.cols();
  double* const balance = reinterpret_cast<double*>(of.workspace);
  double* const parts = balance + experts;
  auto* const participants = reinterpret_cast<std::int64_t*>(engine.scratch());
  launch_shape const by_token{gpu::route_blocks(engine, tokens), gpu::route_threads};
  engine.launch("sinkhorn: begin", gpu::begin_balance<S>, {1, gpu::cut_threads}, of, balance, participants);
  gpu::with_registers<0>(
      experts, [&](auto n) { engine.launch("sinkhorn: exponentials", gpu::raise_logits<S, n()>, by_token, of); });
  for (int i = 0; i < Iterations; ++i) {
    engine.launch("sinkhorn: tokens", gpu::share_tokens<sinkhorn, S>, {blocks(tokens), gpu::cut_threads}, of, balance,
                  participants, parts);
    engine.launch("sinkhorn: experts", gpu::balance_experts<sinkhorn>,
                  {gpu::blocks_of_tokens(experts), gpu::route_threads}, parts, blocks(tokens), experts, balance);
  }
  gpu::with_registers<0>(experts, [&](auto n) {
    engine.launch("sinkhorn: choose", gpu::choose_of_plan<K, S, n()>, by_token, of, balance);
  });
}

}  // namespace moiety::inline MOIETY_ABI
