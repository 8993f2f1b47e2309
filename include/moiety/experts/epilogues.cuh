// SPDX-License-Identifier: Apache-2.0
// What becomes of the sums of an expert MLP's products on a CUDA device, as epilogues of tile_epilogue.cuh: the activation and
// its derivative, biases, and the parts of dw, with the roundings that apply.hpp states.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/array.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::detail {

template <class S> __device__ S weight_of(S const* row_weights, std::int64_t row) {
  return row_weights != nullptr ? row_weights[row] : S{1};
}

/// Adds biases times a weight to the sums of N columns, of which `count` exist.
template <class T, class S, int N> __device__ void add_bias(T const* bias, S weight, int count, S (&sums)[N]) {
  S values[N];
  kernels::gpu::load_columns(bias, count, values);
  MOIETY_REGISTERS
  for (int c = 0; c < N; ++c) sums[c] = fma(weight, values[c], sums[c]);
}

/// Pre-activations of N columns, as they are saved: rounded to the element type.
template <class T, class S, std::size_t M, int N> __device__ void round_to(S const (&sums)[M][N], S (&rounded)[M][N]) {
  MOIETY_REGISTERS
  for (std::size_t m = 0; m < M; ++m) {
    MOIETY_REGISTERS
    for (int c = 0; c < N; ++c) rounded[m][c] = static_cast<S>(static_cast<T>(sums[m][c]));
  }
}

/// The values of unit c, of blocks that lie as the products of an MLP do.
template <class Mlp, class S, std::size_t M, int N>
__device__ array<S, static_cast<std::size_t>(Mlp::inputs)> unit_of_block(S const (&block)[M][N], int c) {
  array<S, static_cast<std::size_t>(Mlp::inputs)> values;
  MOIETY_REGISTERS
  for (int i = 0; i < Mlp::inputs; ++i)
    values[static_cast<std::size_t>(i)] =
        input_products<Mlp>::paired ? block[0][c * Mlp::inputs + i] : block[static_cast<std::size_t>(i)][c];
  return values;
}

/// Epilogue of the first product: z where it is kept, and a. Biases are null where there are none.
template <class Mlp, scalar T> struct activate {
  using products = input_products<Mlp>;
  static constexpr auto matrices = static_cast<std::size_t>(products::count);
  using S = sum_t<T>;
  using rounded = std::conditional_t<has_biases<Mlp>, S, T>;
  T* z;
  T* a;
  std::int64_t ffn;
  S const* row_weights;
  array<kernels::grouped_matrix<T>, matrices> biases;

  template <int N>
  __device__ void operator()(std::int64_t expert, std::int64_t row, std::int64_t col, int count,
                             S const (&sums)[matrices][N]) const {
    constexpr int units = N / products::step;
    S pre[matrices][N], values[units];
    if constexpr (has_biases<Mlp>) {
      S biased[matrices][N];
      MOIETY_REGISTERS
      for (std::size_t m = 0; m < matrices; ++m) {
        MOIETY_REGISTERS
        for (int c = 0; c < N; ++c) biased[m][c] = sums[m][c];
        add_bias(biases[m].data + expert * biases[m].group_stride + col, S{1}, count, biased[m]);
      }
      round_to<T>(biased, pre);
    } else {
      round_to<T>(sums, pre);
    }
    S const weight = weight_of(row_weights, row);
    MOIETY_REGISTERS
    for (int c = 0; c < units; ++c) values[c] = weight * static_cast<S>(Mlp::value(unit_of_block<Mlp>(pre, c)));
    kernels::gpu::store_columns(a + row * ffn + col / products::step, count / products::step, values);
    if (z == nullptr) return;
    MOIETY_REGISTERS
    for (std::size_t m = 0; m < matrices; ++m)
      kernels::gpu::store_columns(z + row * Mlp::inputs * ffn + static_cast<std::int64_t>(m) * ffn + col, count,
                                  pre[m]);
  }
};

/// Epilogue of the second product: o with its bias.
template <scalar T> struct store_biased {
  using S = sum_t<T>;
  T* o;
  std::int64_t hidden;
  S const* row_weights;
  kernels::grouped_matrix<T> bias;

  template <int N>
  __device__ void operator()(std::int64_t expert, std::int64_t row, std::int64_t col, int count,
                             S const (&sums)[1][N]) const {
    S values[N];
    MOIETY_REGISTERS
    for (int c = 0; c < N; ++c) values[c] = sums[0][c];
    add_bias(bias.data + expert * bias.group_stride + col, weight_of(row_weights, row), count, values);
    kernels::gpu::store_columns(o + row * hidden + col, count, values);
  }
};

/// Epilogue of ⟨dy, b_down⟩: the last part of dw.
template <class S> struct store_part {
  S* parts;
  std::int64_t count;

  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t row, std::int64_t, int, S const (&sums)[1][N]) const {
    parts[(row + 1) * count - 1] = sums[0][0];
  }
};

/// Epilogue of dA′ = dy W_down: dz, A′, and the part of dw of a column tile.
template <class Mlp, scalar T> struct differentiate {
  using products = input_products<Mlp>;
  static constexpr auto inputs = static_cast<std::size_t>(Mlp::inputs),
                        matrices = static_cast<std::size_t>(products::count);
  static constexpr bool sums_rows = true;
  using S = sum_t<T>;
  T const* z;
  S const* row_weights;
  T* dz;
  T* scaled_a;
  S* parts;
  std::int64_t ffn;

  /// Pre-activations of N units, and the weight of their row.
  template <int N> struct saved {
    kernels::gpu::held_columns<T, N * products::step> z[matrices];
    S weight;
  };
  template <int N> __device__ saved<N> read(std::int64_t row, std::int64_t unit, int count) const {
    saved<N> of;
    MOIETY_REGISTERS
    for (std::size_t m = 0; m < matrices; ++m) of.z[m].read(z + place(row, m, unit), count * products::step);
    of.weight = weight_of(row_weights, row);
    return of;
  }

  template <int N>
  __device__ S operator()(std::int64_t, std::int64_t row, std::int64_t col, int count, S const (&da)[1][N],
                          saved<N> const& of) const {
    constexpr int step = products::step;
    S pre[matrices][N * step], gradient[matrices][N * step], scaled[N], sum = 0;
    MOIETY_REGISTERS
    for (std::size_t m = 0; m < matrices; ++m) {
      MOIETY_REGISTERS
      for (int c = 0; c < N * step; ++c) pre[m][c] = static_cast<S>(of.z[m].element(c));
    }
    MOIETY_REGISTERS
    for (int c = 0; c < N; ++c) {
      auto const at = unit_of_block<Mlp>(pre, c);
      S const value = static_cast<S>(Mlp::value(at));
      array<S, inputs> slope;
      Mlp::derivative(at, of.weight * da[0][c], slope);
      MOIETY_REGISTERS
      for (std::size_t i = 0; i < inputs; ++i)
        (products::paired ? gradient[0][c * step + static_cast<int>(i)] : gradient[i % matrices][c]) = slope[i];
      scaled[c] = of.weight * value;
      if (c < count) sum = fma(da[0][c], value, sum);
    }
    MOIETY_REGISTERS
    for (std::size_t m = 0; m < matrices; ++m)
      kernels::gpu::store_columns(dz + place(row, m, col), count * step, gradient[m]);
    kernels::gpu::store_columns(scaled_a + row * ffn + col, count, scaled);
    return sum;
  }

  __device__ void row_sum(std::int64_t row, std::int64_t tile, S sum) const {
    if (parts == nullptr) return;
    std::int64_t const tiles = (ffn + kernels::cuda_column_tile - 1) / kernels::cuda_column_tile;
    parts[row * (tiles + (has_biases<Mlp> ? 1 : 0)) + tile] = sum;
  }

 private:
  __device__ std::int64_t place(std::int64_t row, std::size_t matrix, std::int64_t unit) const {
    return row * Mlp::inputs * ffn + static_cast<std::int64_t>(matrix) * ffn + unit * products::step;
  }
};

}  // namespace moiety::inline MOIETY_ABI::detail
