// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/product.cuh>

#include <doctest/doctest.h>

#include <cstdint>

using namespace moiety::kernels;

TEST_CASE("rows are aligned if the first is, and every distance between them") {
  alignas(16) float const memory[64] = {};
  CHECK(gpu::rows_aligned(rows_of<float>{memory, 8}, 16));
  CHECK(gpu::rows_aligned(rows_of<float>{memory + 4, 12}, 16));
  CHECK_FALSE(gpu::rows_aligned(rows_of<float>{memory + 1, 8}, 16));
  CHECK_FALSE(gpu::rows_aligned(rows_of<float>{memory, 9}, 16));
  CHECK(gpu::rows_aligned(rows_of<float>{memory + 1, 9}, 4));
  CHECK(gpu::rows_aligned(grouped_matrix<float const>{memory, 24, 8}, 16));
  CHECK_FALSE(gpu::rows_aligned(grouped_matrix<float const>{memory, 23, 8}, 16));
  CHECK_FALSE(gpu::rows_aligned(grouped_matrix<float const>{memory, 24, 7}, 16));
  CHECK(gpu::rows_aligned(rows_of<float>{nullptr, 0}, 16));
}
