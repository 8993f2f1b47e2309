// SPDX-License-Identifier: Apache-2.0
// Experts of float whose products are the tensor cores', in tf32: what apply.hpp states, with the operands of every product
// rounded as kernels/cuda/portable/tf32_gemm.cuh says.
//
//   struct in_tf32 : one_gpu { using expert_products = mo::tf32_products; };
//
// Router, activations, sums and what is stored are as without it; a token's bits still depend on no other token. Everything
// else too is as on mo::cuda: calls can be captured, and experts may have biases and any layout that mo::cuda takes.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/experts/apply.cuh>
#include <moiety/experts/apply.hpp>
#include <moiety/kernels/cuda/portable/tf32_gemm.cuh>
#include <moiety/kernels/grouped_gemm.hpp>

#include <concepts>
#include <string_view>
#include <type_traits>
#include <utility>

namespace moiety::inline MOIETY_ABI {

template <class Mlp> struct apply_by_tf32 {
  template <class... Operands> static void forward(cuda_engine& engine, Operands&&... operands) {
    if constexpr (of_floats<Operands...>())
      by_engine::forward(kernels::tf32_engine{engine}, std::forward<Operands>(operands)...);
  }
  template <class... Operands> static void backward_input(cuda_engine& engine, Operands&&... operands) {
    if constexpr (of_floats<Operands...>())
      by_engine::backward_input(kernels::tf32_engine{engine}, std::forward<Operands>(operands)...);
  }
  template <class... Operands> static void backward_weights(cuda_engine& engine, Operands&&... operands) {
    if constexpr (of_floats<Operands...>())
      by_engine::backward_weights(kernels::tf32_engine{engine}, std::forward<Operands>(operands)...);
  }

 private:
  using by_engine = apply_experts<Mlp, cuda>;
  template <class... Operands> static consteval bool of_floats() {
    constexpr bool floats = (std::same_as<std::remove_cvref_t<Operands>, kernels::rows_of<float>> || ...);
    static_assert(floats, "mo::tf32_products multiply floats: the deployment needs 'using element = float'.");
    return floats;
  }
};

struct tf32_products {
  static constexpr std::string_view name = "tf32_products";
  static constexpr gathered_rows gathers_first{false, false, false};
  template <class Backend> static constexpr bool runs_on = std::same_as<Backend, cuda>;
  template <class Mlp, class Backend> using apply = apply_by_tf32<Mlp>;
};

}  // namespace moiety
