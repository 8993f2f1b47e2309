// SPDX-License-Identifier: Apache-2.0
// Quantising on a CUDA device, see kernels/quantise.hpp: what the host's values stand for, as e4m3 and scales.
//
//   rows            a block of threads takes one row at a time, 16 values a thread, which leave as 16 bytes. One scale: the row is
//                   read twice, the second time from a cache; blocks of 128 columns: eight threads have one
//   matrices        the same, output by output; or a block of threads has a block of 128 outputs and 128 columns
//   as transposes   a block has 64 outputs, or a block of 128, which are adjacent in every row, and turns squares of 64 × 64
//                   values in shared memory
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

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int quantising_threads = 128, turning_threads = 256, turned_side = 64;
inline constexpr int quantised_together = 16;  // values of a thread: 16 bytes of e4m3

template <class Scaling> using device_operand = quantised_operand<cuda_engine, Scaling>;

__device__ inline std::uint32_t larger(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }

/// All threads of a block together.
__device__ inline std::uint32_t largest_of_block(std::uint32_t value) {
  __shared__ std::uint32_t largest;
  __syncthreads();  // that of a call before has been read
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  atomicMax(&largest, value);
  __syncthreads();
  return largest;
}

/// Of M parts of n columns side by side, the one that a column is of.
template <int M> __device__ inline int part_of(std::int64_t column, std::int64_t n) {
  int part = 0;
  MOIETY_REGISTERS
  for (int m = 1; m < M; ++m) part += column >= m * n ? 1 : 0;
  return part;
}

/// Columns of M parts of n values side by side, 16 at a time.
template <class T, int M> struct joined_columns {
  static constexpr int width = quantised_together;
  std::int64_t n;
  several<T const*, M> starts;

  /// start(m) is where part m begins.
  template <class Start> __device__ joined_columns(std::int64_t columns, Start const& start) : n(columns) {
    MOIETY_REGISTERS
    for (int m = 0; m < M; ++m) starts[m] = start(m);
  }
  __device__ std::int64_t count() const { return M * n; }
  /// Columns first … first + 15, zeros behind the last.
  __device__ void load(std::int64_t first, float (&values)[width]) const {
    if constexpr (M == 1) {
      load_columns<width>(starts[0] + first, n - first < width ? static_cast<int>(n - first) : width, values);
    } else {
      int const part = part_of<M>(first, n);
      T const* const from = start_of(part) + (first - part * n);
      if (first + width <= (part + 1) * n) return load_columns<width>(from, width, values);
      for (int i = 0; i < width; ++i)  // the end of one part and the beginning of the next
        values[i] = first + i < count() ? static_cast<float>(at(first + i)) : 0.0f;
    }
  }

 private:
  __device__ T const* start_of(int part) const {
    T const* from = starts[0];
    MOIETY_REGISTERS
    for (int m = 1; m < M; ++m)
      if (part == m) from = starts[m];
    return from;
  }
  __device__ T at(std::int64_t column) const {
    int const part = part_of<M>(column, n);
    return start_of(part)[column - part * n];
  }
};

__device__ inline std::uint32_t largest_of(float const (&values)[quantised_together]) {
  std::uint32_t largest = 0;
  MOIETY_REGISTERS
  for (float const value : values) largest = larger_magnitude(largest, value);
  return largest;
}

/// Writes 16 values to a multiple of 16 bytes: behind the last of a row, zeros.
__device__ inline void store_quantised(e4m3* to, float const (&values)[quantised_together], float inverse) {
  struct alignas(16) chunk {
    std::uint32_t words[4];
  } bytes{};
  MOIETY_REGISTERS
  for (int i = 0; i < quantised_together; ++i)
    bytes.words[i / 4] |= std::uint32_t{quantised(values[i], inverse).bits} << (i % 4 * 8);
  store_vector(to, bytes);
}

/// One row by a block of quantising_threads.
template <class Scaling, class Columns> __device__ void quantise_row(Columns const& from, e4m3* to, float* scales) {
  constexpr int width = quantised_together, step = quantising_threads * width;
  std::int64_t const begin = std::int64_t{threadIdx.x} * width, count = from.count();
  float values[width];
  if constexpr (Scaling::columns == 0) {
    std::uint32_t largest = 0;
    for (std::int64_t first = begin; first < count; first += step) {
      from.load(first, values);
      largest = larger(largest, largest_of(values));
    }
    float const scale = quantising_scale(largest_of_block(largest)), inverse = 1 / scale;
    if (threadIdx.x == 0) *scales = scale;
    for (std::int64_t first = begin; first < count; first += step) {
      from.load(first, values);
      store_quantised(to + first, values, inverse);
    }
  } else {
    constexpr int lanes = static_cast<int>(Scaling::columns) / width;
    // All lanes of a warp make the same number of rounds, as they meet in the largest value of a block.
    for (std::int64_t start = 0; start < count; start += step) {
      std::int64_t const first = start + begin;
      bool const exists = first < count;
      std::uint32_t largest = 0;
      if (exists) {
        from.load(first, values);
        largest = largest_of(values);
      }
      MOIETY_REGISTERS
      for (int half = lanes / 2; half > 0; half /= 2) {
        largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, half));
      }
      float const scale = quantising_scale(largest);
      if (!exists) continue;
      if (static_cast<int>(threadIdx.x) % lanes == 0) scales[first / Scaling::columns] = scale;
      store_quantised(to + first, values, 1 / scale);
    }
  }
}

template <class Scaling, class T, int M>
__global__ void __launch_bounds__(quantising_threads, 4)
    quantise_rows(ragged_rows const of, array<rows_of<T>, std::size_t{M}> const from, std::int64_t n,
                  device_operand<Scaling> const to) {
  std::int64_t const stride = quantised_stride(M * n), end = of.first(of.groups);
  for (std::int64_t row = of.first(0) + blockIdx.x; row < end; row += gridDim.x) {
    auto const at = [&](int m) { return from[m].data + row_number(from[m], row) * from[m].stride; };
    quantise_row<Scaling>(joined_columns<T, M>(n, at), to.values + row * stride,
                          to.scales + row * scales_of_row<Scaling>(M * n));
  }
}

template <class T, int M>
__global__ void __launch_bounds__(quantising_threads, 4)
    quantise_outputs(std::int64_t rows, array<grouped_matrix<T const>, std::size_t{M}> const from, std::int64_t n,
                     std::int64_t k, device_operand<row_scaled> const to) {
  std::int64_t const stride = quantised_stride(M * k);
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    auto const at = [&](int m) { return from[m].data + row / n * from[m].group_stride + row % n * from[m].row_stride; };
    quantise_row<row_scaled>(joined_columns<T, M>(k, at), to.values + row * stride, to.scales + row);
  }
}

/// A block of 128 outputs and 128 columns: eight threads have the columns of one output, 16 outputs at a time.
template <class T, int M>
__global__ void __launch_bounds__(quantising_threads, 4)
    quantise_blocks(array<grouped_matrix<T const>, std::size_t{M}> const from, std::int64_t n, std::int64_t k,
                    device_operand<block_scaled> const to) {
  constexpr int width = quantised_together, side = static_cast<int>(block_scaled::columns), lanes = side / width;
  std::int64_t const across = scales_of_row<block_scaled>(M * k), down = rows_of_scales<block_scaled>(n);
  std::int64_t const group = blockIdx.x / (across * down), block = blockIdx.x % (across * down);
  std::int64_t const first = block / across * side, stride = quantised_stride(M * k),
                     column = block % across * side + static_cast<int>(threadIdx.x) % lanes * width;
  auto const for_outputs = [&](auto const& f) {
    for (int i = static_cast<int>(threadIdx.x) / lanes; i < side && first + i < n && column < M * k;
         i += quantising_threads / lanes) {
      auto const at = [&](int m) {
        return from[m].data + group * from[m].group_stride + (first + i) * from[m].row_stride;
      };
      float values[width];
      joined_columns<T, M>(k, at).load(column, values);
      f(group * n + first + i, values);
    }
  };
  std::uint32_t largest = 0;
  for_outputs([&](std::int64_t, float const(&values)[width]) { largest = larger(largest, largest_of(values)); });
  float const scale = quantising_scale(largest_of_block(largest)), inverse = 1 / scale;
  if (threadIdx.x == 0) to.scales[blockIdx.x] = scale;
  for_outputs([&](std::int64_t row, float const(&values)[width]) {
    store_quantised(to.values + row * stride + column, values, inverse);
  });
}

/// A block has outputs of a group whose values of one k are adjacent, and the columns that share their scales. A thread reads
/// one of 64 outputs in every fourth row.
template <class Scaling, class T, int M>
__global__ void __launch_bounds__(turning_threads)
    quantise_turned(array<grouped_matrix<T const>, std::size_t{M}> const from, std::int64_t n, std::int64_t k,
                    device_operand<Scaling> const to) {
  constexpr int side = turned_side, together = turning_threads / side, pitch = side + 4;
  constexpr int outputs = Scaling::outputs > 1 ? static_cast<int>(Scaling::outputs) : side, halves = outputs / side;
  __shared__ std::uint32_t largest[together][outputs];
  __shared__ float inverses[outputs];
  __shared__ std::uint8_t turned[side * pitch];  // [output][k]
  std::int64_t const all = M * k, across = scales_of_row<Scaling>(all), down = tiles_of(n, outputs);
  std::int64_t const group = blockIdx.x / (across * down), block = blockIdx.x % (across * down);
  std::int64_t const output = block / across * outputs, begin = block % across * Scaling::columns;
  std::int64_t const end = Scaling::columns == 0 || begin + Scaling::columns > all ? all : begin + Scaling::columns;
  int const lane = static_cast<int>(threadIdx.x) % side, phase = static_cast<int>(threadIdx.x) / side;
  auto const at = [&](std::int64_t column, int half) {
    int const part = part_of<M>(column, k);
    auto const& of = from[static_cast<std::size_t>(part)];
    return static_cast<float>(
        of.data[group * of.group_stride + (column - part * k) * of.row_stride + output + half * side + lane]);
  };
  for (int half = 0; half < halves; ++half) {
    std::uint32_t seen = 0;
    for (std::int64_t column = begin + phase; column < end && output + half * side + lane < n; column += together)
      seen = larger_magnitude(seen, at(column, half));
    largest[phase][half * side + lane] = seen;
  }
  __syncthreads();
  std::uint32_t seen = 0;
  if (static_cast<int>(threadIdx.x) < outputs)
    for (int i = 0; i < together; ++i) seen = larger(seen, largest[i][threadIdx.x]);
  if constexpr (Scaling::outputs > 1) seen = largest_of_block(seen);
  if (static_cast<int>(threadIdx.x) < outputs) {
    float const scale = quantising_scale(seen);
    inverses[threadIdx.x] = 1 / scale;
    if (Scaling::outputs > 1 && threadIdx.x == 0) to.scales[blockIdx.x] = scale;
    if (Scaling::outputs == 1 && output + threadIdx.x < n) to.scales[group * n + output + threadIdx.x] = scale;
  }
  __syncthreads();
  std::int64_t const stride = quantised_stride(all);
  for (int half = 0; half < halves; ++half)
    for (std::int64_t column = begin; column < end; column += side) {
      std::int64_t const first = output + half * side, left = n - first;
      int const depth = end - column < side ? static_cast<int>(end - column) : side;
      int const written = end == all && stride - column < side ? static_cast<int>(stride - column) : side;
      for (int i = phase; i < depth && lane < left; i += together)
        turned[lane * pitch + i] = quantised(at(column + i, half), inverses[half * side + lane]).bits;
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < side * side; i += turning_threads)
        if (i % side < written && i / side < left)
          to.values[(group * n + first + i / side) * stride + column + i % side].bits =
              i % side < depth ? turned[i / side * pitch + i % side] : std::uint8_t{0};
      __syncthreads();
    }
}

/// Device code has no standard containers.
template <class Of, std::size_t M> array<Of, M> listed(std::array<Of, M> const& from) {
  array<Of, M> all;
  for (std::size_t m = 0; m < M; ++m) all[m] = from[m];
  return all;
}

}  // namespace gpu

template <class Scaling, class T, std::size_t M>
void quantise_rows(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                   std::array<rows_of<T>, M> const& from, std::int64_t n,
                   quantised_operand<cuda_engine, Scaling> const& to) {
  engine.launch("quantise_rows", gpu::quantise_rows<Scaling, T, static_cast<int>(M)>,
                {engine.blocks_in_turn(rows_bound), gpu::quantising_threads},
                gpu::ragged_rows{offsets, groups, rows_bound}, gpu::listed(from), n, to);
}

template <class Scaling, class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<cuda_engine, Scaling> const& to) {
  constexpr int matrices = static_cast<int>(M);
  if constexpr (Scaling::outputs == 1)
    engine.launch("quantise_matrices", gpu::quantise_outputs<T, matrices>,
                  {engine.blocks_in_turn(groups * n), gpu::quantising_threads}, groups * n, gpu::listed(from), n, k,
                  to);
  else
    engine.launch("quantise_matrices", gpu::quantise_blocks<T, matrices>,
                  {groups * rows_of_scales<Scaling>(n) * scales_of_row<Scaling>(matrices * k), gpu::quantising_threads},
                  gpu::listed(from), n, k, to);
}

template <class Scaling, class T, std::size_t M>
void quantise_matrices(cuda_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<cuda_engine, Scaling> const& to) {
  constexpr int matrices = static_cast<int>(M);
  std::array<grouped_matrix<T const>, M> lying;
  for (std::size_t m = 0; m < M; ++m) lying[m] = from[m].lying();
  std::int64_t const down = Scaling::outputs > 1 ? rows_of_scales<Scaling>(n) : gpu::tiles_of(n, gpu::turned_side);
  engine.launch("quantise_matrices", gpu::quantise_turned<Scaling, T, matrices>,
                {groups * down * scales_of_row<Scaling>(matrices * k), gpu::turning_threads}, gpu::listed(lying), n, k,
                to);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
