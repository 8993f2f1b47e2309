// SPDX-License-Identifier: Apache-2.0
// What a kernel is told of a grouped product: operands, extents and groups, passed by value.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/tiles.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

/// Operands of a product stand for what they hold.
struct no_scales {
  static constexpr bool any = false;
};

/// Operands have a scale for each 128 k: of a row, and of 128 columns of a matrix.
template <int M> struct block_scales {
  static constexpr bool any = true;
  static constexpr int side = 128;
  float const* by_row = nullptr;           // [rows x across]
  several<float const*, M> by_block = {};  // [groups x down x across] each
  std::int64_t across = 0, down = 0;

  __device__ float of_row(std::int64_t row, int step) const { return by_row[row * across + step]; }
  /// Of the matrix that column `at` of a tile is of, whose columns there begin at column_tile * width.
  __device__ float of_columns(std::int64_t group, std::int64_t column_tile, int width, int at, int step) const {
    std::int64_t const block = (group * down + column_tile * width / side) * across + step;
    float scale = 1;
    MOIETY_REGISTERS
    for (int m = 0; m < M; ++m)
      if (at / width == m) scale = by_block[m][block];
    return scale;
  }
};

/// Sums over k of rows times a matrix of n columns per group; Left = 1 row operand for all matrices, or one each.
template <class A_, class B_, int Left_, int Right_, class Scales = no_scales> struct rows_product {
  using A = A_;
  using B = B_;
  static constexpr int Left = Left_, Right = Right_;
  ragged_rows rows;
  std::int64_t n, k;
  several<rows_of<A>, Left> a;
  several<grouped_matrix<B const>, Right> w;
  Scales scales{};
};

/// Sums over the rows of each group: a matrix [n x k] per group.
template <class A_, class B_, class S> struct matrix_product {
  using A = A_;
  using B = B_;
  ragged_rows rows;
  std::int64_t n, k;
  rows_of<A> a;
  rows_of<B> b;
  grouped_matrix<S> out;
  bool accumulate;
};

template <class T> __device__ inline std::int64_t row_number(rows_of<T> const& of, std::int64_t row) {
  return of.index != nullptr ? std::int64_t{of.index[row]} : row;
}

/// Whether every row of an operand begins at a multiple of `bytes`.
template <class T> bool rows_aligned(T const* data, std::int64_t stride, std::int64_t bytes) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes)) == 0 &&
         stride * static_cast<std::int64_t>(sizeof(T)) % bytes == 0;
}
template <class T> bool rows_aligned(rows_of<T> const& a, std::int64_t bytes) {
  return rows_aligned(a.data, a.stride, bytes);
}
template <class T> bool rows_aligned(grouped_matrix<T> const& w, std::int64_t bytes) {
  return rows_aligned(w.data, w.row_stride, bytes) &&
         w.group_stride * static_cast<std::int64_t>(sizeof(T)) % bytes == 0;
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
