// SPDX-License-Identifier: Apache-2.0
// Experts whose products are of 8 bits: what apply.hpp states, with operands quantised to e4m3 as kernels/quantise.hpp says.
//
//   struct in_fp8 : mo::deployment<> { using element = mo::bf16; using expert_products = mo::fp8_products; };
//
//   fp8_forward_products          z_i = x W_iᵀ and o = a W_downᵀ are of 8 bits; gradients are as without it
//   fp8_products                  so are the input gradients, dA′ = dy W_down and dx = Σ dz_i W_i
//   fp8_block_forward_products, fp8_block_products     the same, with scales of blocks
//
// x, a, dy and dz have a scale for each row, weights one for each output of a product; or rows have one for each 128 columns,
// and weights for each 128 × 128, where outliers of some columns would cost the others their last bits. Weight gradients are
// sums over rows of operands of the element type, and what is saved, stored and exchanged is of the element type too, as are
// router, shared gate, activations and biases: a weight gradient is that of the layer without quantising, at the values that
// 8 bits gave.
//
// Quantised weights are copies, as of a packed weight layout: layer.pack(weights) makes them, and is called again after every
// change. On a device they take (inputs + 1) H I bytes an expert, and as many again for input gradients, and their scales; a call
// holds the rows of one product at a time, max(H, inputs · I) bytes each and scales. On mo::host all is held in bf16: this shows
// what 8 bits do to a model, in the time of bf16. For mo::cuda include <moiety/experts/fp8.cuh>.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/experts/e4m3_copies.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/experts/rows.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/quantise.hpp>
#include <moiety/kernels/scaled_gemm.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <string_view>
#include <utility>

namespace moiety::inline MOIETY_ABI {

template <class Mlp, class Backend, class Scaling, bool Backward> struct apply_by_e4m3 {
  using by_engine = apply_experts<Mlp, Backend>;
  using operand = kernels::quantised_operand<typename Backend::engine, Scaling>;

  /// Bytes of the rows of one product, which expert_rows::room has.
  static constexpr std::int64_t room_bytes(std::int64_t rows, std::int64_t hidden, std::int64_t ffn, bool backward) {
    return backward && !Backward ? 0 : operand::row_bytes(rows, widest(hidden, ffn));
  }

  template <class Engine, scalar T, class... Operands>
  static void forward(Engine& engine, expert_rows const& of, kernels::rows_of<T> x, Operands&&... operands) {
    if constexpr (fits<T>()) {
      auto const by = products(engine, of);
      by_engine::forward(by, of, x, std::forward<Operands>(operands)...);
    }
  }
  template <class Engine, scalar T, class... Operands>
  static void backward_input(Engine& engine, expert_rows const& of, kernels::rows_of<T> dy, Operands&&... operands) {
    if constexpr (!Backward) {
      by_engine::backward_input(engine, of, dy, std::forward<Operands>(operands)...);
    } else if constexpr (fits<T>()) {
      auto const by = products(engine, of);
      by_engine::backward_input(by, of, dy, std::forward<Operands>(operands)...);
    }
  }
  template <class Engine, class... Operands>
  static void backward_weights(Engine& engine, expert_rows const& of, Operands&&... operands) {
    by_engine::backward_weights(engine, of, std::forward<Operands>(operands)...);
  }
  template <class Engine, scalar T, class... Operands>
  static void backward_input_weights(Engine& engine, expert_rows const& of, kernels::rows_of<T> x,
                                     Operands&&... operands) {
    by_engine::template backward_input_weights<T>(engine, of, x, std::forward<Operands>(operands)...);
  }
  template <class Engine, scalar T, class... Operands>
  static void backward_down_weights(Engine& engine, expert_rows const& of, kernels::rows_of<T> dy,
                                    Operands&&... operands) {
    by_engine::template backward_down_weights<T>(engine, of, dy, std::forward<Operands>(operands)...);
  }

 private:
  static constexpr std::int64_t widest(std::int64_t hidden, std::int64_t ffn) {
    return std::max(hidden, Mlp::inputs * ffn);
  }
  template <class T> static consteval bool fits() {
    constexpr bool of_float = std::same_as<sum_t<T>, float>;
    static_assert(of_float,
                  "mo::fp8_products quantise float, bf16 and fp16: 'using element = double' has other products.");
    return of_float;
  }

  template <class Engine> static kernels::e4m3_engine<Engine, Scaling> products(Engine& engine, expert_rows const& of) {
    return {engine, operand::rows_at(of.room, of.most, widest(of.hidden, of.ffn))};
  }
};

namespace detail {
/// Whether products of e4m3 are there for a back end.
template <class Backend> inline constexpr bool multiplies_e4m3 = std::same_as<Backend, host>;
}  // namespace detail

template <class Scaling, bool Backward> struct e4m3_products {
  static constexpr gathered_rows gathers_first{false, !Backward, true};  // quantising gathers, too
  static constexpr bool wants_room = true;
  template <class Backend> using weight_layout = e4m3_copies<Backend, Scaling, Backward>;
  template <class Backend> static constexpr bool runs_on = detail::multiplies_e4m3<Backend>;
  template <class Mlp, class Backend> using apply = apply_by_e4m3<Mlp, Backend, Scaling, Backward>;
};

struct fp8_products : e4m3_products<kernels::row_scaled, true> {
  static constexpr std::string_view name = "fp8_products";
};
struct fp8_forward_products : e4m3_products<kernels::row_scaled, false> {
  static constexpr std::string_view name = "fp8_forward_products";
};
struct fp8_block_products : e4m3_products<kernels::block_scaled, true> {
  static constexpr std::string_view name = "fp8_block_products";
};
struct fp8_block_forward_products : e4m3_products<kernels::block_scaled, false> {
  static constexpr std::string_view name = "fp8_block_forward_products";
};

}  // namespace moiety
