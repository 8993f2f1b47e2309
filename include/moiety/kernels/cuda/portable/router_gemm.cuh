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
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

template <scalar T>
void router_logits(cuda_engine& engine, matrix_view<T const> x, matrix_view<sum_t<T> const> w,
                   matrix_view<sum_t<T>> logits) {
  using S = sum_t<T>;
  grouped_gemm_nt<S>(engine, 1, nullptr, x.rows(), rows_of<T>{x.data(), x.stride()},
                     std::array{grouped_matrix<S const>{w.data(), 0, w.stride()}}, w.rows(), w.cols(),
                     gpu::store_rows<S, S>{logits.data(), logits.stride()});
}

template <class S>
void router_input_gradient(cuda_engine& engine, matrix_view<S const> dlogits, matrix_view<S const> w, S* dx) {
  grouped_gemm_nn<S>(engine, 1, nullptr, dlogits.rows(), std::array{rows_of<S>{dlogits.data(), dlogits.stride()}},
                     std::array{grouped_matrix<S const>{w.data(), 0, w.stride()}}, w.cols(), w.rows(),
                     gpu::store_rows<S, S>{dx, w.cols()});
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

}  // namespace moiety::inline MOIETY_ABI::kernels
