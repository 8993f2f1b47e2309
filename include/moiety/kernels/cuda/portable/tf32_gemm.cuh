// SPDX-License-Identifier: Apache-2.0
// Grouped products of float by tensor cores, for those who ask for them: operands are rounded to tf32, 10 bits behind the
// point and halves away from 0, products are exact and sums are float, eight k at a time. The relative error of an operand is
// at most 2⁻¹¹, where float as it is has 2⁻²⁴. As for all grouped products, an output's bits depend neither on other rows nor
// on the tile that was chosen.
//
//   mo::kernels::tf32_engine by{ctx.engine()};
//   grouped_gemm_nt<float>(by, groups, offsets, rows_bound, …)      and _nn, _tn, as of an engine: portable/grouped_gemm.cuh
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/cuda/portable/tensor_core_gemm.cuh>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

struct tf32_engine {
  cuda_engine& of;
};

template <class S, std::size_t M, class Epilogue>
void grouped_gemm_nt(tf32_engine const& by, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     rows_of<float> a, std::array<grouped_matrix<float const>, M> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue) {
  auto const of = gpu::describe(gpu::ragged_rows{offsets, groups, rows_bound}, std::array{a}, w, n, k);
  gpu::choose_tensor_rows<gpu::tensor_nt, float, static_cast<int>(M)>(by.of, "grouped_gemm_nt", of, epilogue);
}

template <class S, std::size_t M, class Epilogue>
void grouped_gemm_nn(tf32_engine const& by, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     std::array<rows_of<float>, M> const& a, std::array<grouped_matrix<float const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue) {
  auto const of = gpu::describe(gpu::ragged_rows{offsets, groups, rows_bound}, a, w, n, k);
  gpu::choose_tensor_rows<gpu::tensor_nn, float, static_cast<int>(M)>(by.of, "grouped_gemm_nn", of, epilogue);
}

template <class S>
void grouped_gemm_tn(tf32_engine const& by, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     rows_of<float> a, rows_of<float> b, grouped_matrix<float> out, std::int64_t n, std::int64_t k,
                     bool accumulate) {
  gpu::matrix_product<float, float, float> const of{{offsets, groups, rows_bound}, n, k, a, b, out, accumulate};
  if (gpu::rows_aligned(a, 16) && gpu::rows_aligned(b, 16))
    gpu::launch_tensor_matrix<true>(by.of, of);
  else
    gpu::launch_tensor_matrix<false>(by.of, of);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
