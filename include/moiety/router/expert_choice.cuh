// SPDX-License-Identifier: Apache-2.0
// Expert choice on a CUDA device: a block finds the tokens of one expert by a radix select. The tokens of the host.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/largest.cuh>
#include <moiety/router/batch_selection.cuh>
#include <moiety/router/batch_selection.hpp>
#include <moiety/router/expert_choice.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

namespace kernels::gpu {

/// chosen[e][t], for the expert of the block.
template <class Rule, class S>
__global__ void __launch_bounds__(cut_threads, 1) choose_tokens(batch_of_scores<S> const of, bool* chosen) {
  using key_type = typename expert_column<S>::key_type;
  expert_column<S> const column{of, blockIdx.x};
  std::int64_t const tokens = column.tokens();
  int participants = 0;
  for (std::int64_t t = threadIdx.x; t < tokens; t += cut_threads) participants += of.takes_part(t) ? 1 : 0;
  std::int64_t const wanted = Rule::capacity(sum_of_block(participants), of.scores.cols());
  auto const key = [&](std::int64_t t) { return column.can_come(t) ? column.key(t) : key_type{0}; };
  largest_cut<key_type> const cut = find_cut<key_type>(tokens, wanted, key);
  for (std::int64_t t = threadIdx.x; t < tokens; t += cut_threads)
    chosen[column.expert * tokens + t] = column.can_come(t) && cut.keeps(key(t), t);
}

}  // namespace kernels::gpu

template <int K, class Factor>
template <class S>
void expert_choice<K, Factor>::select(cuda_engine& engine, batch_of_scores<S> const& of) const {
  namespace gpu = kernels::gpu;
  auto* const chosen = reinterpret_cast<bool*>(of.workspace);
  engine.launch("expert_choice", gpu::choose_tokens<expert_choice, S>, {of.scores.cols(), gpu::cut_threads}, of,
                chosen);
  gpu::list_tokens(engine, of, chosen);
}

}  // namespace moiety::inline MOIETY_ABI
