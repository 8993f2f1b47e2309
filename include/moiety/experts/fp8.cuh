// SPDX-License-Identifier: Apache-2.0
// experts/fp8.hpp on a CUDA device of compute capability 8.9 or more; on others a call throws config_error. Products are the
// tensor cores', with the sums that kernels/cuda/portable/e4m3_gemm.cuh states.
//
//   struct in_fp8 : one_gpu { using element = mo::bf16; using expert_products = mo::fp8_products; };
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/experts/apply.cuh>
#include <moiety/experts/fp8.hpp>
#include <moiety/kernels/cuda/portable/quantise.cuh>
#include <moiety/kernels/cuda/portable/scaled_gemm.cuh>

namespace moiety::inline MOIETY_ABI::detail {

template <> inline constexpr bool multiplies_e4m3<cuda> = true;

}  // namespace moiety::inline MOIETY_ABI::detail
