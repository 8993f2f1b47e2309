// SPDX-License-Identifier: Apache-2.0
// A router whose products are the tensor cores': what kernels/router_gemm.hpp states, of tokens of bf16, with floats split into
// parts of bf16 as kernels/cuda/portable/bf16x3_gemm.cuh says.
//
//   struct fast_router : one_gpu { using element = mo::bf16; using router_products = mo::bf16x3_products; };
//
// Logits have errors as those of the default, mo::fma_products, but other last bits than the host's: of two experts whose logits
// differ by no more, another may be chosen. Gradients keep 16 bits of every factor. A token's bits still depend on no other
// token; biases of the router have the gradient that they have without it. Calls can be captured.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/bf16x3_gemm.cuh>

#include <concepts>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct bf16x3_products {
  static constexpr std::string_view name = "bf16x3_products";
  using room = kernels::bf16x3_room;
  template <class Backend> static constexpr bool runs_on = std::same_as<Backend, cuda>;
  static kernels::bf16x3_engine on(cuda_engine& engine, void* room_of_pass) { return {engine, room_of_pass}; }
};

}  // namespace moiety
