// SPDX-License-Identifier: Apache-2.0
// The products of a router, in the sum type and with one order of every sum (see grouped_gemm.hpp). x [T × H], W [E × H]:
//
//   router_logits             z = x Wᵀ + b                                       [T × E]; b [E] may be null
//   router_input_gradient     dx = Σ_m dz_m W_m, one sum of M products             [T × H]
//   router_weight_gradient    dW (+)= Σ dz_tᵀ x_t over the tokens of a list      [E × H]; offsets {0, length of the list}
//
//   router_bias_gradient      db (+)= Σ dz_t over the tokens of a list           [E]; `one` is a 1 in memory of the back end
//
// Tokens that are not in the list have no gradient, and may hold values that are not finite.
//
// A deployment names what multiplies in routers:
//
//   fma_products      chains of fused multiply-adds, as here and in cuda/portable/router_gemm.cuh: on all back ends the same bits
//   bf16x3_products   the tensor cores of a CUDA device, see router/bf16x3.cuh
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI::kernels {

template <scalar T>
void router_logits(host_engine& engine, matrix_view<T const> x, matrix_view<sum_t<T> const> w,
                   matrix_view<sum_t<T>> logits, sum_t<T> const* bias = nullptr) {
  using S = sum_t<T>;
  std::array<std::int64_t, 2> const all{0, x.rows()};
  grouped_gemm_nt<S>(
      engine, 1, all.data(), rows_of<T>{x.data(), x.stride()},
      std::array{grouped_matrix<S const>{w.data(), 0, w.stride()}}, w.rows(), w.cols(),
      [&](std::int64_t, std::int64_t t, std::int64_t e, std::int64_t count, std::array<S const*, 1> const& sums) {
        S* const to = logits.row(t) + e;
        for (std::int64_t i = 0; i < count; ++i) to[i] = sums[0][i] + (bias != nullptr ? bias[e + i] : S{0});
      });
}

namespace detail {

/// The operands of the input gradient, as grouped_gemm_nn takes them.
template <class S, std::size_t M>
std::array<rows_of<S>, M> as_rows(std::array<matrix_view<S const>, M> const& dlogits) {
  std::array<rows_of<S>, M> rows;
  for (std::size_t m = 0; m < M; ++m) rows[m] = {dlogits[m].data(), dlogits[m].stride()};
  return rows;
}
template <class S, std::size_t M>
std::array<grouped_matrix<S const>, M> as_matrices(std::array<matrix_view<S const>, M> const& w) {
  std::array<grouped_matrix<S const>, M> matrices;
  for (std::size_t m = 0; m < M; ++m) matrices[m] = {w[m].data(), 0, w[m].stride()};
  return matrices;
}

}  // namespace detail

template <class S, std::size_t M>
void router_input_gradient(host_engine& engine, std::array<matrix_view<S const>, M> const& dlogits,
                           std::array<matrix_view<S const>, M> const& w, S* dx) {
  std::array<std::int64_t, 2> const all{0, dlogits[0].rows()};
  std::int64_t const hidden = w[0].cols();
  grouped_gemm_nn<S>(engine, 1, all.data(), detail::as_rows<S>(dlogits), detail::as_matrices<S>(w), hidden, w[0].rows(),
                     [&](std::int64_t, std::int64_t t, std::int64_t col, std::int64_t cols, S const* sums) {
                       std::copy_n(sums, cols, dx + t * hidden + col);
                     });
}

template <scalar T>
void router_weight_gradient(host_engine& engine, matrix_view<sum_t<T> const> dlogits, matrix_view<T const> x,
                            std::int32_t const* list, std::int64_t const* offsets, matrix_view<sum_t<T>> dw,
                            bool accumulate) {
  using S = sum_t<T>;
  grouped_gemm_tn<S>(engine, 1, offsets, rows_of<S>{dlogits.data(), dlogits.stride(), list},
                     rows_of<T>{x.data(), x.stride(), list}, grouped_matrix<S>{dw.data(), 0, dw.stride()}, dw.rows(),
                     dw.cols(), accumulate);
}

template <class S>
void router_bias_gradient(host_engine& engine, matrix_view<S const> dlogits, S const* one, std::int32_t const* list,
                          std::int64_t const* offsets, S* db, bool accumulate) {
  grouped_gemm_tn<S>(engine, 1, offsets, rows_of<S>{dlogits.data(), dlogits.stride(), list}, rows_of<S>{one, 0},
                     grouped_matrix<S>{db, 0, 1}, dlogits.cols(), 1, accumulate);
}

template <scalar T>
void router_logits(cuda_engine& engine, matrix_view<T const> x, matrix_view<sum_t<T> const> w,
                   matrix_view<sum_t<T>> logits, sum_t<T> const* bias = nullptr);

template <class S, std::size_t M>
void router_input_gradient(cuda_engine& engine, std::array<matrix_view<S const>, M> const& dlogits,
                           std::array<matrix_view<S const>, M> const& w, S* dx);

template <scalar T>
void router_weight_gradient(cuda_engine& engine, matrix_view<sum_t<T> const> dlogits, matrix_view<T const> x,
                            std::int32_t const* list, std::int64_t const* offsets, matrix_view<sum_t<T>> dw,
                            bool accumulate);

template <class S>
void router_bias_gradient(cuda_engine& engine, matrix_view<S const> dlogits, S const* one, std::int32_t const* list,
                          std::int64_t const* offsets, S* db, bool accumulate);

template <class S, class Engine>
void router_input_gradient(Engine&& engine, matrix_view<S const> dlogits, matrix_view<S const> w, S* dx) {
  router_input_gradient<S>(engine, std::array{dlogits}, std::array{w}, dx);
}

}  // namespace moiety::inline MOIETY_ABI::kernels

namespace moiety::inline MOIETY_ABI {

struct fma_products {
  static constexpr std::string_view name = "fma_products";
  template <class Backend> static constexpr bool runs_on = true;
  template <class Engine> static Engine& on(Engine& engine, void*) { return engine; }
};
struct bf16x3_products;

}  // namespace moiety
