// SPDX-License-Identifier: Apache-2.0
// What the back ends of apply.hpp share: the rows of a call, the partial sums of dw, and which sums over rows the gradients
// of weights are.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/core/config.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

/// What the rows of one call have in common.
struct expert_rows {
  std::int64_t experts;
  std::int64_t const* offsets;
  std::int64_t hidden;
  std::int64_t ffn;
  std::int64_t most;     // rows if every token were dispatched
  void* room = nullptr;  // of the products, where they want some
};

/// Columns of one partial sum of dw.
template <class S, class Backend> inline constexpr std::int64_t part_columns = kernels::column_block<S>;

template <class S, class Backend = host> constexpr std::int64_t column_blocks(std::int64_t columns) {
  return (columns + part_columns<S, Backend> - 1) / part_columns<S, Backend>;
}

/// Partial sums of dw of one row.
template <class Mlp, class S, class Backend = host> constexpr std::int64_t weight_parts(std::int64_t ffn) {
  return column_blocks<S, Backend>(ffn) + (has_biases<Mlp> ? 1 : 0);
}

/// What the gradients of biases are sums with: the router weights of the rows, null where they are 1, and a 1. Read where
/// an MLP has biases.
template <class S> struct bias_factors {
  S const* row_weights = nullptr;
  S const* one = nullptr;

  kernels::rows_of<S> weights() const {
    if (row_weights == nullptr) return {one, 0};
    return {row_weights, 1};
  }
};

/// The biases of each expert as the one row of a matrix.
template <class T>
std::array<kernels::grouped_matrix<T const>, 1> bias_rows(kernels::grouped_matrix<T> const& bias, std::int64_t size) {
  return {{{bias.data, bias.group_stride, size}}};
}

/// The operand of each input product in z or dz.
template <class Mlp, class T>
std::array<kernels::rows_of<T>, expert_matrices<Mlp, T>::count> rows_before(T const* z, expert_rows const& of) {
  std::array<kernels::rows_of<T>, expert_matrices<Mlp, T>::count> rows;
  for (std::size_t m = 0; m < rows.size(); ++m)
    rows[m] = {z == nullptr ? nullptr : z + static_cast<std::int64_t>(m) * of.ffn, Mlp::inputs * of.ffn};
  return rows;
}

namespace detail {

/// sum(a, b, ...) of a matrix as it lies: where it does as its transpose, so does its gradient.
template <bool Transposed, class Sum, class A, class B, class S>
void sum_as_stored(Sum const& sum, A const& a, B const& b, kernels::grouped_matrix<S> const& to, std::int64_t n,
                   std::int64_t k) {
  if constexpr (Transposed)
    sum(b, a, to, k, n);
  else
    sum(a, b, to, n, k);
}

}  // namespace detail

/// The sums that are the gradients of the input matrices, and their biases: sum(a, b, to, n, k) leaves Σ aᵀ b [n × k] of each
/// expert.
template <class Mlp, class T, class S, class Sum>
void sum_inputs_over_rows(expert_rows const& of, kernels::rows_of<T> x, T const* dz,
                          expert_matrices<Mlp, S> const& gradients, bias_factors<S> const& factors, Sum const& sum) {
  using products = input_products<Mlp>;
  std::int64_t const width = products::width(of.ffn);
  auto const before = rows_before<Mlp, T>(dz, of);
  for (std::size_t m = 0; m < before.size(); ++m) {
    detail::sum_as_stored<products::transposed>(sum, before[m], x, gradients.inputs[m], width, of.hidden);
    if constexpr (has_biases<Mlp>)
      sum(before[m], kernels::rows_of<S>{factors.one, 0}, gradients.input_biases[m], width, 1);
  }
}

/// The same of the second matrix.
template <class Mlp, class T, class S, class Sum>
void sum_down_over_rows(expert_rows const& of, kernels::rows_of<T> dy, T const* scaled_a,
                        expert_matrices<Mlp, S> const& gradients, bias_factors<S> const& factors, Sum const& sum) {
  using products = input_products<Mlp>;
  detail::sum_as_stored<products::down_transposed>(sum, dy, kernels::rows_of<T>{scaled_a, of.ffn}, gradients.down,
                                                   of.hidden, of.ffn);
  if constexpr (has_biases<Mlp>) sum(dy, factors.weights(), gradients.down_bias, of.hidden, 1);
}

template <class Mlp, class T, class S, class Sum>
void sum_over_rows(expert_rows const& of, kernels::rows_of<T> x, kernels::rows_of<T> dy, T const* dz, T const* scaled_a,
                   expert_matrices<Mlp, S> const& gradients, bias_factors<S> const& factors, Sum const& sum) {
  sum_inputs_over_rows<Mlp>(of, x, dz, gradients, factors, sum);
  sum_down_over_rows<Mlp>(of, dy, scaled_a, gradients, factors, sum);
}

}  // namespace moiety
