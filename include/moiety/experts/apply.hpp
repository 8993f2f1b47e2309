// SPDX-License-Identifier: Apache-2.0
// Expert MLPs over the rows of a permutation: forward, input gradient and weight gradient, as grouped products with the
// activation in their epilogues. R rows, H hidden, I ffn; z and dz hold `inputs` blocks of I columns side by side, or where
// inputs are interleaved the values of one unit side by side: then W_i are one matrix, and dx is summed unit by unit.
//
//   forward             z_i = x W_iᵀ,  a = act(z),  o = a W_downᵀ                                (z is stored if wanted)
//   backward_input      dA′ = dy W_down,  dw = ⟨dA′, a⟩,  dz = ∂a/∂z · w dA′,  A′ = w a,  dx = Σ_i dz_i W_i
//   backward_weights    dW_i (+)= dz_iᵀ x,  dW_down (+)= dyᵀ A′
//
// w is a row's router weight; neither o nor a is kept for backward. The pre-activation is rounded to the element type
// before the activation, in forward and backward alike. dw is left as partial sums, one for each column block of the
// product, to be added in order: [R × weight_parts(I)].
//
// Null row weights mean that they are applied elsewhere: w = 1 in backward_input, and no part of dw is written. Given to
// forward, a = w act(z) and b_down is multiplied by w: router weights on the activation, as Megatron has them.
//
// With biases z_i and o have b_i and b_down added before they are rounded, dw has one part more, ⟨dy, b_down⟩, and
// db_i (+)= Σ dz_i, db_down (+)= Σ w dy: chains over the rows of an expert, as its weight gradients are.
//
// A deployment names what multiplies:
//
//   grouped_products   the library's own kernels, as here and in apply.cuh
//   cublas_products    cuBLAS on a CUDA device, see experts/cublas.cuh
//   tf32_products      those of floats by the tensor cores of a CUDA device, see experts/tf32.cuh
//   fp8_products and others    of operands quantised to 8 bits, see experts/fp8.hpp
//
// An engine is whatever grouped_gemm_nt, _nn and _tn take as one: that of a back end, or of another precision.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/core/array.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/experts/rows.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// The host's; apply.cuh specialises it for mo::cuda.
template <class Mlp, class Backend = host> struct apply_experts {
  static constexpr auto inputs = static_cast<std::size_t>(Mlp::inputs);
  using products = input_products<Mlp>;
  static constexpr auto matrices = static_cast<std::size_t>(products::count);

  /// z may be null.
  template <class Engine, scalar T, class Layout>
  static void forward(Engine& engine, expert_rows const& of, kernels::rows_of<T> x,
                      expert_operands<Mlp, T, Layout> const& weights, T* z, T* a, T* o,
                      sum_t<T> const* row_weights = nullptr) {
    using S = sum_t<T>;
    auto const activate = [&](std::int64_t expert, std::int64_t row, std::int64_t col, std::int64_t cols,
                              std::array<S const*, matrices> const& sums) {
      block_of<S> pre[inputs];
      std::int64_t const unit = col / products::step, units = cols / products::step;
      for (std::size_t i = 0; i < inputs; ++i) {
        std::size_t const m = products::paired ? 0 : i;
        std::int64_t const first = products::paired ? static_cast<std::int64_t>(i) : 0;
        auto const bias = bias_of(weights.matrices.input_biases[m], expert, col + first);
        S const* const from = sums[m] + first;
        for (std::int64_t c = 0; c < units; ++c)
          pre[i][c] = static_cast<S>(static_cast<T>(bias.added(from[c * products::step], c * products::step, S{1})));
      }
      T* const out = a + row * of.ffn + unit;
      S const weight = weight_of(row_weights, row);
      for (std::int64_t c = 0; c < units; ++c)
        out[c] = static_cast<T>(weight * static_cast<S>(Mlp::value(column(pre, c))));
      for (std::size_t i = 0; z != nullptr && i < inputs; ++i) put_units(pre[i], units, before(z, of, row, i, unit));
    };
    grouped_gemm_nt<S>(engine, of.experts, of.offsets, x, weights.forward_inputs(), products::width(of.ffn), of.hidden,
                       activate);
    auto const store = [&](std::int64_t expert, std::int64_t row, std::int64_t col, std::int64_t cols,
                           std::array<S const*, 1> const& sums) {
      T* const to = o + row * of.hidden + col;
      auto const bias = bias_of(weights.matrices.down_bias, expert, col);
      S const weight = weight_of(row_weights, row);
      for (std::int64_t c = 0; c < cols; ++c) to[c] = static_cast<T>(bias.added(sums[0][c], c, weight));
    };
    grouped_gemm_nt<S>(engine, of.experts, of.offsets, kernels::rows_of<T>{a, of.ffn}, weights.forward_down(),
                       of.hidden, of.ffn, store);
  }

  /// dy: the gradient of the combined output, gathered by row. row_weights [R] and dweight_parts may be null.
  template <class Engine, scalar T, class Layout>
  static void backward_input(Engine& engine, expert_rows const& of, kernels::rows_of<T> dy,
                             expert_operands<Mlp, T, Layout> const& weights, T const* z, sum_t<T> const* row_weights,
                             T* dz, T* scaled_a, sum_t<T>* dweight_parts, T* dx) {
    using S = sum_t<T>;
    std::int64_t const parts = weight_parts<Mlp, S>(of.ffn);
    auto const differentiate = [&](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols, S const* da) {
      S const weight = weight_of(row_weights, row);
      block_of<S> pre[inputs], gradient[inputs], value;
      S inner[lanes] = {};
      for (std::size_t i = 0; i < inputs; ++i) {
        T const* const from = before(z, of, row, i, col);
        for (std::int64_t c = 0; c < cols; ++c) pre[i][c] = static_cast<S>(from[c * products::step]);
      }
      for (std::int64_t c = 0; c < cols; ++c) {
        array<S, inputs> const at = column(pre, c);
        array<S, inputs> slope;
        value[c] = static_cast<S>(Mlp::value(at));
        Mlp::derivative(at, weight * da[c], slope);
        for (std::size_t i = 0; i < inputs; ++i) gradient[i][c] = slope[i];
      }
      for (std::size_t i = 0; i < inputs; ++i) put_units(gradient[i], cols, before(dz, of, row, i, col));
      T* const scaled = scaled_a + row * of.ffn + col;
      for (std::int64_t c = 0; c < cols; ++c) scaled[c] = static_cast<T>(weight * value[c]);
      std::int64_t const whole = cols / lanes * lanes;
      for (std::int64_t c = 0; c < whole; c += lanes)
        for (std::int64_t l = 0; l < lanes; ++l) inner[l] = fma(da[c + l], value[c + l], inner[l]);
      for (std::int64_t l = 0; l < cols - whole; ++l) inner[l] = fma(da[whole + l], value[whole + l], inner[l]);
      for (std::int64_t half = lanes / 2; half > 0; half /= 2)
        for (std::int64_t l = 0; l < half; ++l) inner[l] += inner[l + half];
      if (dweight_parts != nullptr) dweight_parts[row * parts + col / kernels::column_block<S>] = inner[0];
    };
    grouped_gemm_nn<S>(engine, of.experts, of.offsets, std::array{dy}, weights.backward_down(), of.ffn, of.hidden,
                       differentiate);
    if (has_biases<Mlp> && dweight_parts != nullptr)
      grouped_gemm_nt<S>(
          engine, of.experts, of.offsets, dy, bias_rows(weights.matrices.down_bias, of.hidden), 1, of.hidden,
          [&](std::int64_t, std::int64_t row, std::int64_t, std::int64_t, std::array<S const*, 1> const& sums) {
            dweight_parts[(row + 1) * parts - 1] = sums[0][0];
          });
    grouped_gemm_nn<S>(engine, of.experts, of.offsets, rows_before<Mlp, T>(dz, of), weights.backward_inputs(),
                       of.hidden, products::width(of.ffn),
                       [&](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols, S const* sums) {
                         T* const to = dx + row * of.hidden + col;
                         for (std::int64_t c = 0; c < cols; ++c) to[c] = static_cast<T>(sums[c]);
                       });
  }

  template <class Engine, scalar T>
  static void backward_weights(Engine& engine, expert_rows const& of, kernels::rows_of<T> x, kernels::rows_of<T> dy,
                               T const* dz, T const* scaled_a, expert_matrices<Mlp, sum_t<T>> const& gradients,
                               bool accumulate, bias_factors<sum_t<T>> const& factors = {}) {
    using S = sum_t<T>;
    sum_over_rows<Mlp, T>(
        of, x, dy, dz, scaled_a, gradients, factors,
        [&](auto const& a, auto const& b, kernels::grouped_matrix<S> const& to, std::int64_t n, std::int64_t k) {
          grouped_gemm_tn<S>(engine, of.experts, of.offsets, a, b, to, n, k, accumulate);
        });
  }

 private:
  static constexpr std::int64_t lanes = 16;  // partial sums of dw inside a block, folded in halves

  template <class S> using block_of = S[static_cast<std::size_t>(kernels::column_block<S>)];

  /// The values of one column of a block, one of each input.
  template <class S> static array<S, inputs> column(block_of<S> const (&block)[inputs], std::int64_t c) {
    array<S, inputs> values;
    for (std::size_t i = 0; i < inputs; ++i) values[i] = block[i][c];
    return values;
  }

  template <class S> static S weight_of(S const* row_weights, std::int64_t row) {
    return row_weights != nullptr ? row_weights[row] : S{1};
  }

  /// Biases from one column on, added to sums; nothing where an MLP has none.
  template <class T> struct biases_from {
    T const* values;
    template <class S> S added(S sum, std::int64_t c, S weight) const {
      if constexpr (has_biases<Mlp>)
        return fma(weight, static_cast<S>(values[c]), sum);
      else
        return sum;
    }
  };
  template <class T>
  static biases_from<T> bias_of(kernels::grouped_matrix<T> const& bias, std::int64_t expert, std::int64_t column) {
    return {has_biases<Mlp> ? bias.group(expert) + column : nullptr};
  }

  /// Input i of a unit in z or dz.
  template <class Pointer>
  static Pointer before(Pointer z, expert_rows const& of, std::int64_t row, std::size_t i, std::int64_t unit) {
    return z + row * Mlp::inputs * of.ffn + products::place(static_cast<std::int64_t>(i), unit, of.ffn);
  }
  template <class S, class T> static void put_units(block_of<S> const& values, std::int64_t units, T* to) {
    for (std::int64_t c = 0; c < units; ++c) to[c * products::step] = static_cast<T>(values[c]);
  }
};

/// Whether rows are gathered once before the products of a pass read them, where kernels want that.
struct gathered_rows {
  bool forward, backward_input, backward_weights;
};

/// A deployment's choice of what multiplies.
struct grouped_products {
  static constexpr std::string_view name = "grouped_products";
  static constexpr gathered_rows gathers_first{true, true, true};
  template <class Backend> static constexpr bool runs_on = true;
  template <class Mlp, class Backend> using apply = apply_experts<Mlp, Backend>;
};
struct cublas_products;
struct tf32_products;
struct fp8_products;
struct fp8_forward_products;
struct fp8_block_products;
struct fp8_block_forward_products;

}  // namespace moiety
