// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>

#include <kernels/cuda/portable/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE_TEMPLATE("sums of rows have one order, whatever the tile", T, mo::bf16, mo::fp16, float, double) {
  INFO("seed ", seed);
  for (int64 const n : {8, 128, 129, 300}) {
    int64 const pad = (8 - n % 8) % 8;  // wide rows, whose last chunk ends
    for (int64 const slack : {0, 1000})
      check_row_sums<mo::sum_t<T>, T>({.rows = {17, 0, 40, 3, 70}, .n = n, .k = 80 - pad, .pad = pad, .slack = slack});
  }
}

TEST_CASE("matrices stand side by side in equal parts of a tile") {
  CHECK(gpu::matrix_columns(128, 1) == 128);
  CHECK(gpu::matrix_columns(128, 2) == 64);
  CHECK(gpu::matrix_columns(128, 3) == 32);
  CHECK(gpu::matrix_columns(128, 4) == 32);
  CHECK(gpu::sums_rows<weigh<float>>);
  CHECK_FALSE(gpu::sums_rows<gpu::store_matrix<float>>);
}
