// SPDX-License-Identifier: Apache-2.0
// gather_weighted and input_weight_gradients on a CUDA device: a block takes one token at a time to gather, a warp one slot
// at a time to sum. The bits of the host.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/gather.cuh>
#include <moiety/kernels/input_weights.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

template <scalar T>
__global__ void __launch_bounds__(row_threads) copy_weighted(permutation_view const order, sum_t<T> const* weights,
                                                             matrix_view<T const> const x, matrix_view<T> const out) {
  using S = sum_t<T>;
  constexpr int width = row_columns<T>;
  for (std::int64_t t = blockIdx.x; t < x.rows(); t += gridDim.x)
    for (std::int64_t col = std::int64_t{threadIdx.x} * width; col < x.cols(); col += row_threads * width) {
      int const count = static_cast<int>(x.cols() - col < width ? x.cols() - col : width);
      S values[width];
      load_columns<width>(x.row(t) + col, count, values);
      for (std::int64_t slot = t * order.slots; slot < (t + 1) * order.slots; ++slot) {
        std::int64_t const row = order.positions[slot];
        if (row < 0) continue;
        S weighted[width];
        MOIETY_REGISTERS
        for (int c = 0; c < width; ++c) weighted[c] = weights[slot] * values[c];
        store_columns<width>(out.row(row) + col, count, weighted);
      }
    }
}

template <scalar T>
__global__ void __launch_bounds__(row_threads) dot_rows(permutation_view const order, matrix_view<T const> const rows,
                                                        matrix_view<T const> const x, sum_t<T>* by_slot) {
  using S = sum_t<T>;
  std::int64_t const lane = threadIdx.x % 32u, warps = std::int64_t{gridDim.x} * (row_threads / 32);
  std::int64_t const slots = order.tokens * order.slots;
  for (std::int64_t slot = std::int64_t{blockIdx.x} * (row_threads / 32) + threadIdx.x / 32u; slot < slots;
       slot += warps) {
    std::int64_t const row = order.positions[slot];
    S sum = 0;
    if (row >= 0) {
      T const *const a = rows.row(row), *const b = x.row(slot / order.slots);
      for (std::int64_t i = lane; i < x.cols(); i += 32) sum = fma(static_cast<S>(a[i]), static_cast<S>(b[i]), sum);
    }
    MOIETY_REGISTERS
    for (int distance = 16; distance > 0; distance /= 2) sum = sum + __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0) by_slot[slot] = sum;
  }
}

}  // namespace gpu

template <scalar T>
void gather_weighted(cuda_engine& engine, permutation_view const& order, sum_t<T> const* weights,
                     matrix_view<T const> x, matrix_view<T> out) {
  engine.launch("gather_weighted", gpu::copy_weighted<T>, {engine.blocks_in_turn(x.rows()), gpu::row_threads}, order,
                weights, x, out);
}

template <scalar T>
void input_weight_gradients(cuda_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                            matrix_view<T const> x, sum_t<T>* by_slot) {
  std::int64_t const warps = gpu::row_threads / 32, slots = order.tokens * order.slots;
  std::int64_t const blocks = std::min((slots + warps - 1) / warps, std::int64_t{16} * engine.multiprocessors());
  engine.launch("input_weight_gradients", gpu::dot_rows<T>, {blocks, gpu::row_threads}, order, rows, x, by_slot);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
