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

/// Sums over k of rows times a matrix of n columns per group; Left = 1 row operand for all matrices, or one each.
template <class A_, class B_, int Left_, int Right_> struct rows_product {
  using A = A_;
  using B = B_;
  static constexpr int Left = Left_, Right = Right_;
  ragged_rows rows;
  std::int64_t n, k;
  several<rows_of<A>, Left> a;
  several<grouped_matrix<B const>, Right> w;
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
