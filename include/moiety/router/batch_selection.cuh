// SPDX-License-Identifier: Apache-2.0
// What selections of a whole batch share on a CUDA device.
//
//   expert_column<S>   the scores of one expert; keys are in their order, for find_cut
//   list_chosen        flags [E × T] → ids of each token, ascending
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/largest.cuh>
#include <moiety/kernels/cuda/portable/route.cuh>
#include <moiety/router/batch_selection.hpp>

#include <cuda_runtime.h>

#include <concepts>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

template <std::floating_point S> struct expert_column {
  using key_type = decltype(ordered_bits(S{}));
  static constexpr S none = -moiety::detail::infinity<S>;

  batch_of_scores<S> const& of;
  std::int64_t expert;

  __device__ std::int64_t tokens() const { return of.scores.rows(); }
  /// What is no number counts as −∞.
  __device__ S score(std::int64_t t) const {
    S const s = of.scores.row(t)[expert];
    return s >= none ? s : none;
  }
  __device__ bool can_come(std::int64_t t) const { return of.takes_part(t) && score(t) > none; }
  /// Above 0.
  __device__ key_type key(std::int64_t t) const { return ordered_bits(score(t)); }
};

inline std::int64_t blocks_of_tokens(std::int64_t tokens) { return (tokens + route_threads - 1) / route_threads; }

template <int = 0>
__global__ void __launch_bounds__(route_threads)
    list_chosen(bool const* chosen, std::int64_t tokens, std::int64_t experts, std::int32_t* ids) {
  std::int64_t const t = std::int64_t{blockIdx.x} * route_threads + threadIdx.x;
  if (t >= tokens) return;
  std::int32_t* next = ids + t * experts;
  for (std::int64_t e = 0; e < experts; ++e)
    if (chosen[e * tokens + t]) *next++ = static_cast<std::int32_t>(e);
}

/// Lists the tokens of flags.
template <class S> void list_tokens(cuda_engine& engine, batch_of_scores<S> const& of, bool const* chosen) {
  std::int64_t const tokens = of.scores.rows();
  engine.launch("listing the experts of tokens", list_chosen<>, {blocks_of_tokens(tokens), route_threads}, chosen,
                tokens, of.scores.cols(), of.ids);
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
