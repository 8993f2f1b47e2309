// SPDX-License-Identifier: Apache-2.0
// combine on a CUDA device: a block takes one token at a time; a thread sums 8 columns over the slots in their order, by
// the fused multiply-adds of the host. Four rows are asked for before the first is used.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/gather.cuh>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// What combine sums; weights and base may be null.
template <scalar T, class Out> struct combination {
  permutation_view order;
  matrix_view<T const> rows;
  sum_t<T> const* weights;
  sum_t<T> const* base;
  matrix_view<Out> y;
};

template <scalar T, class Out> __global__ void __launch_bounds__(row_threads) sum_rows(combination<T, Out> const of) {
  using S = sum_t<T>;
  constexpr int width = 8, ahead = 4;
  std::int64_t const k = of.order.slots, cols = of.y.cols();
  for (std::int64_t t = blockIdx.x; t < of.y.rows(); t += gridDim.x) {
    std::int32_t const* const positions = of.order.positions + t * k;
    for (std::int64_t col = std::int64_t{threadIdx.x} * width; col < cols; col += row_threads * width) {
      int const count = static_cast<int>(cols - col < width ? cols - col : width);
      S sums[width] = {};
      if (of.base != nullptr) load_columns<width>(of.base + t * cols + col, count, sums);
      for (std::int64_t first = 0; first < k; first += ahead) {
        S values[ahead][width];
        MOIETY_REGISTERS
        for (int j = 0; j < ahead; ++j)
          if (first + j < k && positions[first + j] >= 0)
            load_columns<width>(of.rows.row(positions[first + j]) + col, count, values[j]);
        MOIETY_REGISTERS
        for (int j = 0; j < ahead; ++j) {
          if (first + j >= k || positions[first + j] < 0) continue;
          S const weight = of.weights != nullptr ? of.weights[t * k + first + j] : S{1};
          MOIETY_REGISTERS
          for (int c = 0; c < width; ++c) sums[c] = fma(weight, values[j][c], sums[c]);
        }
      }
      store_columns<width>(of.y.row(t) + col, count, sums);
    }
  }
}

}  // namespace gpu

template <scalar T>
void combine(cuda_engine& engine, permutation_view const& order, matrix_view<T const> rows, sum_t<T> const* weights,
             sum_t<T> const* base, matrix_view<T> y) {
  engine.launch("combine", gpu::sum_rows<T, T>, {engine.blocks_in_turn(y.rows()), gpu::row_threads},
                gpu::combination<T, T>{order, rows, weights, base, y});
}

template <scalar T>
void combine_sums(cuda_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                  sum_t<T> const* weights, sum_t<T> const* base, matrix_view<sum_t<T>> sums) {
  using S = sum_t<T>;
  engine.launch("combine_sums", gpu::sum_rows<T, S>, {engine.blocks_in_turn(sums.rows()), gpu::row_threads},
                gpu::combination<T, S>{order, rows, weights, base, sums});
}

}  // namespace moiety::inline MOIETY_ABI::kernels
