// SPDX-License-Identifier: Apache-2.0
// Experts whose products are of 8 bits: what apply.hpp states, with operands quantised to e4m3 as kernels/quantise.hpp says.
//
//   struct in_fp8 : mo::deployment<> { using element = mo::bf16; using expert_products = mo::fp8_products; };
//
//   fp8_forward_products   z_i = x W_iᵀ and o = a W_downᵀ are of 8 bits; gradients are as without it
//   fp8_products           so are the input gradients, dA′ = dy W_down and dx = Σ dz_i W_i
//
// x, a, dy and dz have a scale for each row, weights one for each output of a product. Weight gradients are sums over rows of
// operands of the element type, and what is saved, stored and exchanged is of the element type too, as are router, shared
// gate, activations and biases: a gradient is that of the layer without quantising, at the values that 8 bits gave.
//
// Quantised weights are copies, as of a packed weight layout: layer.pack(weights) makes them, and is called again after every
// change. They take (inputs + 1) H I bytes an expert, and as many again for input gradients, with 4 bytes for each output.
// A call holds the rows of one product at a time, max(H, inputs · I) + 4 bytes each. On mo::host this shows what 8 bits do to a
// model; it saves no time there. For mo::cuda include <moiety/experts/fp8.cuh>.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
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

template <class Mlp, class Backend, bool Backward> struct apply_by_e4m3 {
  using by_engine = apply_experts<Mlp, Backend>;

  /// Bytes of the rows of one product.
  static constexpr std::int64_t room_bytes(std::int64_t rows, std::int64_t hidden, std::int64_t ffn) {
    return detail::quantised_bytes(rows, widest(hidden, ffn));
  }

  template <class Engine, scalar T, class... Operands>
  static void forward(Engine& engine, expert_rows const& of, kernels::rows_of<T> x, Operands&&... operands) {
    if constexpr (fits<T>()) {
      room const quantised(engine, of);
      auto const by = quantised.products(engine, of);
      by_engine::forward(by, of, x, std::forward<Operands>(operands)...);
    }
  }
  template <class Engine, scalar T, class... Operands>
  static void backward_input(Engine& engine, expert_rows const& of, kernels::rows_of<T> dy, Operands&&... operands) {
    if constexpr (!Backward) {
      by_engine::backward_input(engine, of, dy, std::forward<Operands>(operands)...);
    } else if constexpr (fits<T>()) {
      room const quantised(engine, of);
      auto const by = quantised.products(engine, of);
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

  /// Where rows are quantised, for as long as a call.
  class room {
   public:
    template <class Engine>
    room(Engine& engine, expert_rows const& of) : memory_(room_bytes(of.most, of.hidden, of.ffn), engine.memory()) {}

    template <class Engine> kernels::e4m3_engine<Engine> products(Engine& engine, expert_rows const& of) const {
      auto const rows =
          detail::quantised_at<kernels::quantised_rows>(memory_.data(), of.most, widest(of.hidden, of.ffn));
      return {engine, rows, of.most};
    }

   private:
    buffer memory_;
  };
};

namespace detail {
/// Whether products of e4m3 are there for a back end.
template <class Backend> inline constexpr bool multiplies_e4m3 = std::same_as<Backend, host>;
}  // namespace detail

template <bool Backward> struct e4m3_products {
  static constexpr gathered_rows gathers_first{false, !Backward, true};  // quantising gathers, too
  using weight_layout = e4m3_copies<Backward>;
  template <class Backend> static constexpr bool runs_on = detail::multiplies_e4m3<Backend>;
  template <class Mlp, class Backend> using apply = apply_by_e4m3<Mlp, Backend, Backward>;
  /// Bytes that a call of `rows` rows holds beside its workspace.
  template <class Mlp>
  static constexpr std::int64_t room_bytes(std::int64_t rows, std::int64_t hidden, std::int64_t ffn) {
    return apply_by_e4m3<Mlp, host, Backward>::room_bytes(rows, hidden, ffn);
  }
};

struct fp8_products : e4m3_products<true> {
  static constexpr std::string_view name = "fp8_products";
};
struct fp8_forward_products : e4m3_products<false> {
  static constexpr std::string_view name = "fp8_forward_products";
};

}  // namespace moiety
