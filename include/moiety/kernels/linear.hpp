// SPDX-License-Identifier: Apache-2.0
// A linear map of every token, with weights in the element type and one order of every sum (see grouped_gemm.hpp). Rows of
// W [N × K] are outputs; base, of the sum type, is added before results are rounded, and may be null:
//
//   linear                   y_t = base_t + W x_t                            x [T × K], base and y [T × N]
//   linear_input_gradient    dx_t = base_t + Wᵀ dy_t                         dy [T × N], base and dx [T × K]
//   linear_weight_gradient   dW (+)= Σ dy_t x_tᵀ over the tokens of a list   offsets {0, length of the list}
//
// Tokens that are not in the list have no gradient, and may hold values that are not finite.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {

/// Writes sums on top of a base, columns `col` … of row t.
template <class S, class T>
void store_on_base(S const* sums, S const* base, matrix_view<T> to, std::int64_t t, std::int64_t col,
                   std::int64_t cols) {
  S const* const from = base != nullptr ? base + t * to.cols() + col : nullptr;
  for (std::int64_t c = 0; c < cols; ++c)
    to(t, col + c) = static_cast<T>(from != nullptr ? from[c] + sums[c] : sums[c]);
}

template <class T> std::array<grouped_matrix<T const>, 1> one_matrix(matrix_view<T const> w) {
  return {{{w.data(), 0, w.stride()}}};
}

}  // namespace detail

template <scalar T>
void linear(host_engine& engine, matrix_view<T const> x, matrix_view<T const> w, sum_t<T> const* base,
            matrix_view<T> y) {
  using S = sum_t<T>;
  std::array<std::int64_t, 2> const all{0, x.rows()};
  grouped_gemm_nt<S>(
      engine, 1, all.data(), rows_of<T>{x.data(), x.stride()}, detail::one_matrix(w), w.rows(), w.cols(),
      [&](std::int64_t, std::int64_t t, std::int64_t col, std::int64_t cols, std::array<S const*, 1> const& sums) {
        detail::store_on_base(sums[0], base, y, t, col, cols);
      });
}

template <scalar T>
void linear_input_gradient(host_engine& engine, matrix_view<T const> dy, matrix_view<T const> w, sum_t<T> const* base,
                           matrix_view<T> dx) {
  using S = sum_t<T>;
  std::array<std::int64_t, 2> const all{0, dy.rows()};
  grouped_gemm_nn<S>(engine, 1, all.data(), std::array{rows_of<T>{dy.data(), dy.stride()}}, detail::one_matrix(w),
                     w.cols(), w.rows(),
                     [&](std::int64_t, std::int64_t t, std::int64_t col, std::int64_t cols, S const* sums) {
                       detail::store_on_base(sums, base, dx, t, col, cols);
                     });
}

template <scalar T>
void linear_weight_gradient(host_engine& engine, matrix_view<T const> dy, matrix_view<T const> x,
                            std::int32_t const* list, std::int64_t const* offsets, matrix_view<sum_t<T>> dw,
                            bool accumulate) {
  using S = sum_t<T>;
  grouped_gemm_tn<S>(engine, 1, offsets, rows_of<T>{dy.data(), dy.stride(), list},
                     rows_of<T>{x.data(), x.stride(), list}, grouped_matrix<S>{dw.data(), 0, dw.stride()}, dw.rows(),
                     dw.cols(), accumulate);
}

template <scalar T>
void linear(cuda_engine& engine, matrix_view<T const> x, matrix_view<T const> w, sum_t<T> const* base,
            matrix_view<T> y);

template <scalar T>
void linear_input_gradient(cuda_engine& engine, matrix_view<T const> dy, matrix_view<T const> w, sum_t<T> const* base,
                           matrix_view<T> dx);

template <scalar T>
void linear_weight_gradient(cuda_engine& engine, matrix_view<T const> dy, matrix_view<T const> x,
                            std::int32_t const* list, std::int64_t const* offsets, matrix_view<sum_t<T>> dw,
                            bool accumulate);

}  // namespace moiety::inline MOIETY_ABI::kernels
