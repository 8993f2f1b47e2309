// SPDX-License-Identifier: Apache-2.0
// spread_weights and gather_weight_gradients on a CUDA device: a thread a slot.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/row_weights.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int slot_threads = 256;

/// The slot of this thread; slots are fewer than 2³¹.
__device__ inline std::int64_t slot_of_thread() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

template <class S>
__global__ void __launch_bounds__(slot_threads)
    spread(std::int32_t const* positions, std::int64_t slots, S const* by_slot, S* by_row) {
  std::int64_t const slot = slot_of_thread();
  if (slot < slots && positions[slot] >= 0) by_row[positions[slot]] = by_slot[slot];
}

template <class S>
__global__ void __launch_bounds__(slot_threads)
    gather_parts(std::int32_t const* positions, std::int64_t slots, S const* parts, std::int64_t blocks, S* by_slot) {
  std::int64_t const slot = slot_of_thread();
  if (slot >= slots) return;
  std::int64_t const row = positions[slot];
  S sum = 0;
  for (std::int64_t b = 0; row >= 0 && b < blocks; ++b) sum += parts[row * blocks + b];
  by_slot[slot] = sum;
}

inline launch_shape thread_a_slot(std::int64_t slots) {
  return {(slots + slot_threads - 1) / slot_threads, slot_threads};
}

}  // namespace gpu

template <class S>
void spread_weights(cuda_engine& engine, permutation_view const& order, S const* by_slot, S* by_row) {
  std::int64_t const slots = order.tokens * order.slots;
  engine.launch("spread_weights", gpu::spread<S>, gpu::thread_a_slot(slots), order.positions, slots, by_slot, by_row);
}

template <class S>
void gather_weight_gradients(cuda_engine& engine, permutation_view const& order, S const* parts, std::int64_t blocks,
                             S* by_slot) {
  std::int64_t const slots = order.tokens * order.slots;
  engine.launch("gather_weight_gradients", gpu::gather_parts<S>, gpu::thread_a_slot(slots), order.positions, slots,
                parts, blocks, by_slot);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
