// SPDX-License-Identifier: Apache-2.0
// Quantising on a CUDA device, see kernels/quantise.hpp: the bits of the host.
//
// A block takes one row at a time and reads it twice, the second time from a cache: 16 values a thread, which leave as 16
// bytes. Of matrices that lie as their transposes a block takes 64 of n, which are adjacent in every row of k, and turns
// squares of 64 x 64 values in shared memory.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/array.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/product.cuh>
#include <moiety/kernels/cuda/tiles.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/quantise.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int quantising_threads = 128, turning_threads = 256, turned_side = 64;
inline constexpr int quantised_together = 16;  // values of a thread: 16 bytes of e4m3

__device__ inline std::uint32_t largest_of_block(std::uint32_t value) {
  __shared__ unsigned largest;
  __syncthreads();  // that of a call before has been read
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  atomicMax(&largest, value);
  __syncthreads();
  return largest;
}

/// 16 values of e4m3 as they lie in memory.
struct alignas(16) quantised_chunk {
  std::uint32_t words[4] = {};
  __device__ void set(int i, e4m3 value) { words[i / 4] |= std::uint32_t{value.bits} << (i % 4 * 8); }
};

/// Writes the first `count` of 16, to a multiple of 16 bytes.
__device__ inline void store_quantised(e4m3* to, int count, quantised_chunk const& values) {
  if (count >= quantised_together) return store_vector(to, values);
  for (int i = 0; i < count; ++i) to[i].bits = static_cast<std::uint8_t>(values.words[i / 4] >> (i % 4 * 8));
}

/// One row of M times n values, part m from at(m) on, by a block of quantising_threads.
template <class T, int M, class At> __device__ void quantise_row(std::int64_t n, At const& at, e4m3* to, float* scale) {
  constexpr int width = quantised_together;
  std::uint32_t largest = 0;
  for (int m = 0; m < M; ++m)
    for (std::int64_t col = std::int64_t{threadIdx.x} * width; col < n; col += quantising_threads * width) {
      float values[width];
      load_columns<width>(at(m) + col, n - col < width ? static_cast<int>(n - col) : width, values);
      MOIETY_REGISTERS
      for (float const value : values) largest = larger_magnitude(largest, value);
    }
  float const by = quantising_scale(largest_of_block(largest)), inverse = 1 / by;
  if (threadIdx.x == 0) *scale = by;
  // A chunk of 16 may hold the end of one part and the beginning of the next.
  std::int64_t const all = M * n;
  for (std::int64_t first = std::int64_t{threadIdx.x} * width; first < all; first += quantising_threads * width) {
    int const count = all - first < width ? static_cast<int>(all - first) : width;
    int const m = M == 1 ? 0 : static_cast<int>(first / n);
    std::int64_t const col = first - m * n;
    quantised_chunk chunk;
    if (col + width <= n) {
      float values[width];
      load_columns<width>(at(m) + col, width, values);
      MOIETY_REGISTERS
      for (int i = 0; i < width; ++i) chunk.set(i, quantised(values[i], inverse));
    } else {
      for (int i = 0; i < count; ++i) {
        std::int64_t const place = first + i;
        int const part = static_cast<int>(place / n);
        chunk.set(i, quantised(static_cast<float>(at(part)[place - part * n]), inverse));
      }
    }
    store_quantised(to + first, count, chunk);
  }
}

template <class T, int M>
__global__ void __launch_bounds__(quantising_threads)
    quantise_rows(ragged_rows const of, array<rows_of<T>, std::size_t{M}> const from, std::int64_t n,
                  quantised_rows const to) {
  std::int64_t const stride = quantised_stride(M * n), end = of.first(of.groups);
  for (std::int64_t row = of.first(0) + blockIdx.x; row < end; row += gridDim.x)
    quantise_row<T, M>(
        n, [&](int m) { return from[m].data + row_number(from[m], row) * from[m].stride; }, to.values + row * stride,
        to.scales + row);
}

template <class T, int M>
__global__ void __launch_bounds__(quantising_threads)
    quantise_matrices(std::int64_t rows, array<grouped_matrix<T const>, std::size_t{M}> const from, std::int64_t n,
                      std::int64_t k, quantised_matrix const to) {
  std::int64_t const stride = quantised_stride(M * k);
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    quantise_row<T, M>(
        k, [&](int m) { return from[m].data + row / n * from[m].group_stride + row % n * from[m].row_stride; },
        to.values + row * stride, to.scales + row);
}

/// A block has columns of one group: a thread reads one of 64 columns in every fourth row.
template <class T, int M>
__global__ void __launch_bounds__(turning_threads)
    quantise_columns(array<grouped_matrix<T const>, std::size_t{M}> const from, std::int64_t n, std::int64_t k,
                     quantised_matrix const to) {
  constexpr int side = turned_side, rows_together = turning_threads / side, pitch = side + 4;
  __shared__ std::uint32_t largest[rows_together][side];
  __shared__ float inverses[side];
  __shared__ std::uint8_t turned[side * pitch];  // [column][row]
  std::int64_t const blocks = tiles_of(n, side), group = blockIdx.x / blocks, first = blockIdx.x % blocks * side;
  int const col = static_cast<int>(threadIdx.x) % side, begin = static_cast<int>(threadIdx.x) / side;
  bool const exists = first + col < n;
  auto const at = [&](int m, std::int64_t row) {
    return from[m].data + group * from[m].group_stride + row * from[m].row_stride + first + col;
  };
  std::uint32_t seen = 0;
  for (int m = 0; m < M; ++m)
    for (std::int64_t row = begin; row < k && exists; row += rows_together)
      seen = larger_magnitude(seen, static_cast<float>(*at(m, row)));
  largest[begin][col] = seen;
  __syncthreads();
  if (begin == 0) {
    for (int i = 1; i < rows_together; ++i) seen = largest[i][col] > seen ? largest[i][col] : seen;
    float const by = quantising_scale(seen);
    inverses[col] = 1 / by;
    if (exists) to.scales[group * n + first + col] = by;
  }
  __syncthreads();
  float const inverse = inverses[col];
  e4m3* const out = to.values + (group * n + first) * quantised_stride(M * k);
  for (int m = 0; m < M; ++m)
    for (std::int64_t row = 0; row < k; row += side) {
      int const rows = k - row < side ? static_cast<int>(k - row) : side;
      for (int i = begin; i < rows && exists; i += rows_together)
        turned[col * pitch + i] = quantised(static_cast<float>(*at(m, row + i)), inverse).bits;
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < side * side; i += turning_threads)
        if (i % side < rows && first + i / side < n)
          out[i / side * quantised_stride(M * k) + m * k + row + i % side].bits = turned[i / side * pitch + i % side];
      __syncthreads();
    }
}

/// Blocks that take rows in turn.
inline std::int64_t blocks_for_rows(cuda_engine const& engine, std::int64_t rows) {
  return std::min(rows, std::int64_t{32} * engine.multiprocessors());
}

/// Device code has no standard containers.
template <class Of, std::size_t M> array<Of, M> listed(std::array<Of, M> const& from) {
  array<Of, M> all;
  for (std::size_t m = 0; m < M; ++m) all[m] = from[m];
  return all;
}

}  // namespace gpu

template <class T, std::size_t M>
void quantise_rows(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                   std::array<rows_of<T>, M> const& from, std::int64_t n, quantised_rows const& to) {
  engine.launch("quantise_rows", gpu::quantise_rows<T, static_cast<int>(M)>,
                {gpu::blocks_for_rows(engine, rows_bound), gpu::quantising_threads},
                gpu::ragged_rows{offsets, groups, rows_bound}, gpu::listed(from), n, to);
}

template <class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to) {
  engine.launch("quantise_matrices", gpu::quantise_matrices<T, static_cast<int>(M)>,
                {gpu::blocks_for_rows(engine, groups * n), gpu::quantising_threads}, groups * n, gpu::listed(from), n,
                k, to);
}

template <class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to) {
  std::array<grouped_matrix<T const>, M> lying;
  for (std::size_t m = 0; m < M; ++m) lying[m] = from[m].lying();
  engine.launch("quantise_matrices", gpu::quantise_columns<T, static_cast<int>(M)>,
                {groups * gpu::tiles_of(n, gpu::turned_side), gpu::turning_threads}, gpu::listed(lying), n, k, to);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
