// SPDX-License-Identifier: Apache-2.0
// gather on a CUDA device: a block takes one token at a time, reads its row once and writes it to each of its rows.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/gather.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int row_threads = 128;

/// Columns that a thread has at a time: 16 bytes.
template <class T> inline constexpr int row_columns = 16 / static_cast<int>(sizeof(T));

template <scalar T>
__global__ void __launch_bounds__(row_threads)
    copy_rows(permutation_view const order, matrix_view<T const> const x, matrix_view<T> const out) {
  constexpr int width = row_columns<T>;
  for (std::int64_t t = blockIdx.x; t < x.rows(); t += gridDim.x) {
    for (std::int64_t col = std::int64_t{threadIdx.x} * width; col < x.cols(); col += row_threads * width) {
      int const count = static_cast<int>(x.cols() - col < width ? x.cols() - col : width);
      T values[width];
      load_columns<width>(x.row(t) + col, count, values);
      for (std::int64_t j = 0; j < order.slots; ++j) {
        std::int64_t const row = order.positions[t * order.slots + j];
        if (row >= 0) store_columns<width>(out.row(row) + col, count, values);
      }
    }
  }
}

}  // namespace gpu

template <scalar T>
void gather(cuda_engine& engine, permutation_view const& order, matrix_view<T const> x, matrix_view<T> out) {
  engine.launch("gather", gpu::copy_rows<T>, {engine.blocks_in_turn(x.rows()), gpu::row_threads}, order, x, out);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
