// SPDX-License-Identifier: Apache-2.0
// The row kernels between the products of cublas.cuh: one thread an element, nothing fused. R rows, `inputs` blocks of I
// columns in z and dz.
//
//   gather_rows          out[r] = rows.row(r)                                             [R × columns]
//   activate_rows        a = w act(z)                                                     [R × I]
//   differentiate_rows   dz = ∂a/∂z · w dA′,  A′ = w a,  and ⟨dA′, a⟩ of each tile of cuda_column_tile columns
//   round_rows           from sums to elements
//
// Null weights w are 1; null parts of ⟨dA′, a⟩ are not written.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/array.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::detail {

inline constexpr int element_threads = 256;

inline launch_shape one_each(std::int64_t elements) {
  return {(elements + element_threads - 1) / element_threads, element_threads};
}
__device__ inline std::int64_t this_element() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

template <class T>
__global__ void __launch_bounds__(element_threads)
    copy_gathered(std::int64_t rows, std::int64_t columns, kernels::rows_of<T> const from, T* to) {
  std::int64_t const i = this_element();
  if (i >= rows * columns) return;
  std::int64_t const row = i / columns, source = from.index != nullptr ? from.index[row] : row;
  to[i] = from.data[source * from.stride + i % columns];
}

/// The pre-activations of column c of a row.
template <class Mlp, class S, class T>
__device__ array<S, static_cast<std::size_t>(Mlp::inputs)> column_before(T const* z, std::int64_t ffn, std::int64_t row,
                                                                         std::int64_t c) {
  array<S, static_cast<std::size_t>(Mlp::inputs)> at;
  for (int i = 0; i < Mlp::inputs; ++i)
    at[static_cast<std::size_t>(i)] = static_cast<S>(z[(row * Mlp::inputs + i) * ffn + c]);
  return at;
}

template <class Mlp, class T>
__global__ void __launch_bounds__(element_threads)
    activated(std::int64_t rows, std::int64_t ffn, T const* z, sum_t<T> const* row_weights, T* a) {
  using S = sum_t<T>;
  std::int64_t const i = this_element();
  if (i >= rows * ffn) return;
  S const weight = row_weights != nullptr ? row_weights[i / ffn] : S{1};
  a[i] = static_cast<T>(weight * static_cast<S>(Mlp::value(column_before<Mlp, S>(z, ffn, i / ffn, i % ffn))));
}

/// A block is one tile of columns of one row.
template <class Mlp, class T>
__global__ void __launch_bounds__(kernels::cuda_column_tile)
    differentiated(std::int64_t ffn, std::int64_t tiles, T const* z, sum_t<T> const* da, sum_t<T> const* row_weights,
                   T* dz, T* scaled_a, sum_t<T>* parts) {
  using S = sum_t<T>;
  constexpr auto inputs = static_cast<std::size_t>(Mlp::inputs);
  constexpr int width = static_cast<int>(kernels::cuda_column_tile);
  __shared__ S products[width];
  std::int64_t const row = blockIdx.x / tiles, c = blockIdx.x % tiles * width + threadIdx.x;
  S product = 0;
  if (c < ffn) {
    S const weight = row_weights != nullptr ? row_weights[row] : S{1}, gradient = da[row * ffn + c];
    array<S, inputs> const at = column_before<Mlp, S>(z, ffn, row, c);
    array<S, inputs> slope;
    S const value = static_cast<S>(Mlp::value(at));
    Mlp::derivative(at, weight * gradient, slope);
    for (std::size_t i = 0; i < inputs; ++i)
      dz[(row * Mlp::inputs + static_cast<std::int64_t>(i)) * ffn + c] = static_cast<T>(slope[i]);
    scaled_a[row * ffn + c] = static_cast<T>(weight * value);
    product = gradient * value;
  }
  products[threadIdx.x] = product;
  for (int half = width / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) products[threadIdx.x] += products[static_cast<int>(threadIdx.x) + half];
  }
  if (threadIdx.x == 0 && parts != nullptr) parts[row * tiles + blockIdx.x % tiles] = products[0];
}

template <class S, class T>
__global__ void __launch_bounds__(element_threads) rounded(std::int64_t count, S const* from, T* to) {
  std::int64_t const i = this_element();
  if (i < count) to[i] = static_cast<T>(from[i]);
}

template <class T>
void gather_rows(cuda_engine& engine, std::int64_t rows, std::int64_t columns, kernels::rows_of<T> from, T* to) {
  engine.launch("gathering rows for cuBLAS", copy_gathered<T>, one_each(rows * columns), rows, columns, from, to);
}

template <class Mlp, class T>
void activate_rows(cuda_engine& engine, std::int64_t rows, std::int64_t ffn, T const* z, sum_t<T> const* row_weights,
                   T* a) {
  engine.launch("an activation", activated<Mlp, T>, one_each(rows * ffn), rows, ffn, z, row_weights, a);
}

template <class Mlp, class T>
void differentiate_rows(cuda_engine& engine, std::int64_t rows, std::int64_t ffn, T const* z, sum_t<T> const* da,
                        sum_t<T> const* row_weights, T* dz, T* scaled_a, sum_t<T>* parts) {
  constexpr auto width = static_cast<int>(kernels::cuda_column_tile);
  std::int64_t const tiles = (ffn + width - 1) / width;
  engine.launch("the derivative of an activation", differentiated<Mlp, T>, {rows * tiles, width}, ffn, tiles, z, da,
                row_weights, dz, scaled_a, parts);
}

template <class S, class T> void round_rows(cuda_engine& engine, std::int64_t count, S const* from, T* to) {
  engine.launch("rounding rows", rounded<S, T>, one_each(count), count, from, to);
}

}  // namespace moiety::inline MOIETY_ABI::detail
