// SPDX-License-Identifier: Apache-2.0
// Expert MLPs on a CUDA device: what apply.hpp states, with the same roundings, as three kinds of grouped product whose
// epilogues hold the activation and its derivative. Weights are read as they lie.
//
// dw is left as one partial sum per tile of cuda_column_tile columns.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/experts/epilogues.cuh>
#include <moiety/experts/matrices.hpp>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class S> inline constexpr std::int64_t part_columns<S, cuda> = kernels::cuda_column_tile;

namespace detail {
struct do_nothing {
  void operator()() const {}
};
}  // namespace detail

template <class Mlp> struct apply_experts<Mlp, cuda> {
  using products = input_products<Mlp>;
  static constexpr bool fits = !products::transposed || products::count == 1;

  /// z may be null.
  template <scalar T, class Engine, class Layout>
  static void forward(Engine&& engine, expert_rows const& of, kernels::rows_of<T> x,
                      expert_operands<Mlp, T, Layout> const& weights, T* z, T* a, T* o,
                      sum_t<T> const* row_weights = nullptr) {
    static_assert(fits, "on mo::cuda a gated MLP that is stored mo::in_by_out must be mo::interleaved too.");
    using S = sum_t<T>;
    detail::activate<Mlp, T> activate{z, a, of.ffn, row_weights, {}};
    for (std::size_t m = 0; m < activate.matrices; ++m) activate.biases[m] = weights.matrices.input_biases[m];
    if constexpr (fits)
      grouped_gemm_nt<S>(engine, of.experts, of.offsets, of.most, x, weights.forward_inputs(), products::width(of.ffn),
                         of.hidden, activate);
    auto const down = [&](auto const& epilogue) {
      grouped_gemm_nt<S>(engine, of.experts, of.offsets, of.most, kernels::rows_of<T>{a, of.ffn},
                         weights.forward_down(), of.hidden, of.ffn, epilogue);
    };
    if constexpr (has_biases<Mlp>)
      down(detail::store_biased<T>{o, of.hidden, row_weights, weights.matrices.down_bias});
    else
      down(kernels::gpu::store_rows<T, S>{o, of.hidden});
  }

  /// row_weights and dweight_parts may be null. `between` puts work into the stream that finds dz and A′ written, and dx not yet.
  template <scalar T, class Engine, class Layout, class Between = detail::do_nothing>
  static void backward_input(Engine&& engine, expert_rows const& of, kernels::rows_of<T> dy,
                             expert_operands<Mlp, T, Layout> const& weights, T const* z, sum_t<T> const* row_weights,
                             T* dz, T* scaled_a, sum_t<T>* dweight_parts, T* dx, Between const& between = {}) {
    using S = sum_t<T>;
    grouped_gemm_nn<S>(engine, of.experts, of.offsets, of.most, std::array{dy}, weights.backward_down(), of.ffn,
                       of.hidden, detail::differentiate<Mlp, T>{z, row_weights, dz, scaled_a, dweight_parts, of.ffn});
    if (has_biases<Mlp> && dweight_parts != nullptr)
      grouped_gemm_nt<S>(engine, of.experts, of.offsets, of.most, dy, bias_rows(weights.matrices.down_bias, of.hidden),
                         1, of.hidden, detail::store_part<S>{dweight_parts, weight_parts<Mlp, S, cuda>(of.ffn)});
    between();
    if constexpr (fits)
      grouped_gemm_nn<S>(engine, of.experts, of.offsets, of.most, rows_before<Mlp, T>(dz, of),
                         weights.backward_inputs(), of.hidden, products::width(of.ffn),
                         kernels::gpu::store_rows<T, S>{dx, of.hidden});
  }

  template <scalar T, class Engine>
  static void backward_weights(Engine&& engine, expert_rows const& of, kernels::rows_of<T> x, kernels::rows_of<T> dy,
                               T const* dz, T const* scaled_a, expert_matrices<Mlp, sum_t<T>> const& gradients,
                               bool accumulate, bias_factors<sum_t<T>> const& factors = {}) {
    backward_input_weights<T>(engine, of, x, dz, gradients, accumulate, factors);
    backward_down_weights<T>(engine, of, dy, scaled_a, gradients, accumulate, factors);
  }
  template <scalar T, class Engine>
  static void backward_input_weights(Engine&& engine, expert_rows const& of, kernels::rows_of<T> x, T const* dz,
                                     expert_matrices<Mlp, sum_t<T>> const& gradients, bool accumulate,
                                     bias_factors<sum_t<T>> const& factors) {
    sum_inputs_over_rows<Mlp>(of, x, dz, gradients, factors, sum_by<sum_t<T>>(engine, of, accumulate));
  }
  template <scalar T, class Engine>
  static void backward_down_weights(Engine&& engine, expert_rows const& of, kernels::rows_of<T> dy, T const* scaled_a,
                                    expert_matrices<Mlp, sum_t<T>> const& gradients, bool accumulate,
                                    bias_factors<sum_t<T>> const& factors) {
    sum_down_over_rows<Mlp>(of, dy, scaled_a, gradients, factors, sum_by<sum_t<T>>(engine, of, accumulate));
  }

 private:
  template <class S, class Engine> static auto sum_by(Engine&& engine, expert_rows const& of, bool accumulate) {
    return [&engine, &of, accumulate](auto const& a, auto const& b, auto const& to, std::int64_t n, std::int64_t k) {
      grouped_gemm_tn<S>(engine, of.experts, of.offsets, of.most, a, b, to, n, k, accumulate);
    };
  }
};

}  // namespace moiety
