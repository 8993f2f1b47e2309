// SPDX-License-Identifier: Apache-2.0
// A linear map of every token on a CUDA device: grouped products of one group.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/linear.hpp>

#include <cuda_runtime.h>

#include <array>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// Writes sums as rows of T, on top of a base that may be null.
template <class T, class S> struct store_on_base {
  T* to;
  std::int64_t stride;
  S const* base;
  std::int64_t base_stride;

  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t row, std::int64_t col, int count, S const (&sums)[1][N]) const {
    S values[N];
    if (base != nullptr) load_columns(base + row * base_stride + col, count, values);
    MOIETY_REGISTERS
    for (int c = 0; c < N; ++c) values[c] = base != nullptr ? values[c] + sums[0][c] : sums[0][c];
    store_columns(to + row * stride + col, count, values);
  }
};

}  // namespace gpu

template <scalar T>
void linear(cuda_engine& engine, matrix_view<T const> x, matrix_view<T const> w, sum_t<T> const* base,
            matrix_view<T> y) {
  using S = sum_t<T>;
  grouped_gemm_nt<S>(engine, 1, nullptr, x.rows(), rows_of<T>{x.data(), x.stride()}, detail::one_matrix(w), w.rows(),
                     w.cols(), gpu::store_on_base<T, S>{y.data(), y.stride(), base, y.cols()});
}

template <scalar T>
void linear_input_gradient(cuda_engine& engine, matrix_view<T const> dy, matrix_view<T const> w, sum_t<T> const* base,
                           matrix_view<T> dx) {
  using S = sum_t<T>;
  grouped_gemm_nn<S>(engine, 1, nullptr, dy.rows(), std::array{rows_of<T>{dy.data(), dy.stride()}},
                     detail::one_matrix(w), w.cols(), w.rows(),
                     gpu::store_on_base<T, S>{dx.data(), dx.stride(), base, dx.cols()});
}

template <scalar T>
void linear_weight_gradient(cuda_engine& engine, matrix_view<T const> dy, matrix_view<T const> x,
                            std::int32_t const* list, std::int64_t const* offsets, matrix_view<sum_t<T>> dw,
                            bool accumulate) {
  using S = sum_t<T>;
  grouped_gemm_tn<S>(engine, 1, offsets, x.rows(), rows_of<T>{dy.data(), dy.stride(), list},
                     rows_of<T>{x.data(), x.stride(), list}, grouped_matrix<S>{dw.data(), 0, dw.stride()}, dw.rows(),
                     dw.cols(), accumulate);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
