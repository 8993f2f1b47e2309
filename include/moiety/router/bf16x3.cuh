// SPDX-License-Identifier: Apache-2.0
// A router whose products are the tensor cores': what kernels/router_gemm.hpp states, of tokens of bf16, with floats split into
// parts of bf16 as kernels/cuda/portable/bf16x3_gemm.cuh says.
//
//   struct fast_router : one_gpu { using element = mo::bf16; using router_products = mo::bf16x3_products; };
//
// Logits lose nothing of a router weight, but their sums are those of the tensor cores, and not the host's as those of the
// default, mo::fma_products: of two experts whose logits differ by no more than float sums do, another may be chosen. A logit
// of what is not finite may be NaN, which sanitising counts as −∞. Gradients keep 16 bits of every factor. A token's bits still
// depend on no other token; a bias of the router has the gradient that it has without it. Calls can be captured.
//
// Another element is refused while compiling. The workspace has, with E and H rounded up to 8 and M = 1 or, with learned noise,
// 2: 6 H E bytes in forward, 4 M (T + H) E in the input half, 4 T E + 8 ⌈T / 2048⌉ E H in the weight half.
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
