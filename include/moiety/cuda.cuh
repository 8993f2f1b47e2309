// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: include it in sources that nvcc compiles, beside or instead of <moiety/moiety.hpp>, in any order.
//
//   struct one_gpu : mo::deployment<> {
//     using backend = mo::cuda;
//     using element = mo::bf16;       // or fp16, float, double
//   };
//   mo::context<one_gpu> ctx;         // see backend/cuda.cuh
//
// A spec, and every policy in it, is the one that the host runs: members that kernels call are marked MOIETY_HD.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/backend/transport/device_ranks.cuh>
#include <moiety/experts/apply.cuh>
#include <moiety/kernels/cuda/portable/combine.cuh>
#include <moiety/kernels/cuda/portable/drop.cuh>
#include <moiety/kernels/cuda/portable/expected_load.cuh>
#include <moiety/kernels/cuda/portable/fill_normal.cuh>
#include <moiety/kernels/cuda/portable/gather.cuh>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/cuda/portable/identity_rows.cuh>
#include <moiety/kernels/cuda/portable/input_weights.cuh>
#include <moiety/kernels/cuda/portable/jitter.cuh>
#include <moiety/kernels/cuda/portable/linear.cuh>
#include <moiety/kernels/cuda/portable/logit_noise.cuh>
#include <moiety/kernels/cuda/portable/permute.cuh>
#include <moiety/kernels/cuda/portable/rank_blocks.cuh>
#include <moiety/kernels/cuda/portable/route.cuh>
#include <moiety/kernels/cuda/portable/route_together.cuh>
#include <moiety/kernels/cuda/portable/router_gemm.cuh>
#include <moiety/kernels/cuda/portable/row_weights.cuh>
#include <moiety/kernels/cuda/portable/token_gate.cuh>
#include <moiety/moiety.hpp>
#include <moiety/router/expert_choice.cuh>
#include <moiety/router/sinkhorn.cuh>
#include <moiety/router/token_rounding.cuh>
