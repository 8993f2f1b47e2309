// SPDX-License-Identifier: Apache-2.0
// The products of a router on a CUDA device: chains of fma in the order that grouped_gemm.hpp promises, so the same x and
// W give the logits of the host, bit for bit, and with them its routing.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/router_gemm.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// Writes sums plus a value for each column.
template <class S> struct store_biased_rows {
  store_rows<S, S> store;
  S const* bias;

  template <int N>
  __device__ void operator()(std::int64_t group, std::int64_t row, std::int64_t col, int count,
                             S const (&sums)[1][N]) const {
    S biased[1][N];
    MOIETY_REGISTERS
    for (int c = 0; c < N; ++c) biased[0][c] = sums[0][c] + (c < count ? bias[col + c] : S{0});
    store(group, row, col, count, biased);
  }
};

}  // namespace gpu

template <scalar T>
void router_logits(cuda_engine& engine, matrix_view<T const> x, matrix_view<sum_t<T> const> w,
                   matrix_view<sum_t<T>> logits, sum_t<T> const* bias) {
  using S = sum_t<T>;
  auto const multiply = [&](auto const& epilogue) {
    grouped_gemm_nt<S>(engine, 1, nullptr, x.rows(), rows_of<T>{x.data(), x.stride()},
                       std::array{grouped_matrix<S const>{w.data(), 0, w.stride()}}, w.rows(), w.cols(), epilogue);
  };
  gpu::store_rows<S, S> const store{logits.data(), logits.stride()};
  if (bias == nullptr) return multiply(store);
  multiply(gpu::store_biased_rows<S>{store, bias});
}

template <class S, std::size_t M>
void router_input_gradient(cuda_engine& engine, std::array<matrix_view<S const>, M> const& dlogits,
                           std::array<matrix_view<S const>, M> const& w, S* dx) {
  grouped_gemm_nn<S>(engine, 1, nullptr, dlogits[0].rows(), detail::as_rows<S>(dlogits), detail::as_matrices<S>(w),
                     w[0].cols(), w[0].rows(), gpu::store_rows<S, S>{dx, w[0].cols()});
}

template <scalar T>
void router_weight_gradient(cuda_engine& engine, matrix_view<sum_t<T> const> dlogits, matrix_view<T const> x,
                            std::int32_t const* list, std::int64_t const* offsets, matrix_view<sum_t<T>> dw,
                            bool accumulate) {
  using S = sum_t<T>;
  grouped_gemm_tn<S>(engine, 1, offsets, x.rows(), rows_of<S>{dlogits.data(), dlogits.stride(), list},
                     rows_of<T>{x.data(), x.stride(), list}, grouped_matrix<S>{dw.data(), 0, dw.stride()}, dw.rows(),
                     dw.cols(), accumulate);
}

template <class S>
void router_bias_gradient(cuda_engine& engine, matrix_view<S const> dlogits, S const* one, std::int32_t const* list,
                          std::int64_t const* offsets, S* db, bool accumulate) {
  grouped_gemm_tn<S>(engine, 1, offsets, dlogits.rows(), rows_of<S>{dlogits.data(), dlogits.stride(), list},
                     rows_of<S>{one, 0}, grouped_matrix<S>{db, 0, 1}, dlogits.cols(), 1, accumulate);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
