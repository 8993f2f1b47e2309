// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/tensor_core_gemm.cuh>

#include <kernels/cuda/portable/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE_TEMPLATE("16-byte rows: groups at the edges of tiles", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  for (int64 const rows : {31, 32, 33, 127, 128, 129}) check_nt<float, T>({.rows = {rows}, .n = 40, .k = 72, .pad = 8});
  check_all<float, T>({.rows = {0, 33, 0, 128, 1, 0}, .n = 136, .k = 72});
  check_all<float, T>({.rows = {129}, .n = 24, .k = 200, .gathered = true, .pad = 8});
}
