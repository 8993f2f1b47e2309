// SPDX-License-Identifier: Apache-2.0
// Grouped products of e4m3 by tensor cores, with float sums; of rows times stored weights [n x k] only, both k first.
//
//   grouped_gemm_nt<float>(engine, groups, offsets, rows_bound, a, w, n, k, epilogue)           as of grouped_gemm.cuh
//   y_m(r, c) = sum over k of a(r, k) w_m(c, k)
//
//   grouped_gemm_nt<float>(engine, groups, offsets, rows_bound, a, w, scales, n, k, epilogue)
//   y_m(r, c) = sum over blocks b of 128 k of s(r, b) t_m(c / 128, b) times the sum over the k of b of a(r, k) w_m(c, k)
//
// Numeric contract. Products are exact. The sum of each 128 ascending k is the tensor cores', in an order and a precision of
// their own; these sums, times both scales where operands have them, are added in float, ascending, from +0, by a fused
// multiply-add. What is behind k in the last 128 are zeros. So an output's bits depend neither on other rows nor on tiles, but
// on the instruction they do: wgmma keeps about 14 bits of a sum, and mma.sync, which is made of products of fp16 on devices of
// compute capability 9.0, more. There wgmma has every product whose matrices the copy engine can address, however few the rows,
// so that a device and a shape have one kind of sum.
//
// Rows of all operands begin at multiples of 16 bytes, and so do groups of matrices, else config_error; which is
// thrown, too, where the device is of less than compute capability 8.9, or has code that was compiled for less.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/backend/device_memory.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/cuda/portable/tensor_core_gemm.cuh>
#include <moiety/kernels/cuda/sm90/grouped_gemm.cuh>
#include <moiety/kernels/cuda/tiles.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cuda_runtime.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// The least compute capability whose tensor cores multiply e4m3.
inline constexpr int e4m3_capability = 89;

inline void require_e4m3(cuda_engine const& engine, wide_loads aligned) {
  int const capability = engine.compute_capability();
  moiety::detail::require<config_error>(capability >= e4m3_capability, "CUDA device ", engine.device(),
                                        " has compute capability ", capability / 10, '.', capability % 10,
                                        ", and products of e4m3 need 8.9 or newer.");
  moiety::detail::require<config_error>(aligned.a && aligned.b,
                                        "products of e4m3 need rows and matrices that begin at multiples of 16 bytes.");
}

/// Other code traps. A device of 8.9 takes that of sm_80 where a program has no newer one for it.
template <class Kernel> void require_e4m3_code(cuda_engine const& engine, Kernel* kernel) {
  moiety::detail::device_scope const scope(engine.device());
  cudaFuncAttributes about{};
  moiety::detail::expect(cudaFuncGetAttributes(&about, kernel), "asking for the code of grouped_gemm_nt");
  moiety::detail::require<config_error>(about.ptxVersion >= e4m3_capability, "this device runs code for ",
                                        about.ptxVersion / 10, '.', about.ptxVersion % 10,
                                        ", and products of e4m3 need the program compiled for 8.9 or newer.");
}

template <class Operands, class Epilogue>
void launch_e4m3_rows(cuda_engine& engine, typename Operands::product const& of, Epilogue const& epilogue) {
  require_e4m3_code(engine, &tensor_rows<e4m3, Operands, true, Epilogue>);
  launch_tensor_rows<Operands, true>(engine, "grouped_gemm_nt", of, epilogue);
}

template <int M, class Scales, class Epilogue>
void multiply_e4m3(cuda_engine& engine, rows_product<e4m3, e4m3, 1, M, Scales> const& of, Epilogue const& epilogue) {
  require_e4m3(engine, rows_aligned(of, 16, 16));
  if (sm90::multiply_nt(engine, of, epilogue)) return;
  if (has_few_rows(engine, of.rows))
    launch_e4m3_rows<scaled_tensor_nt<e4m3, 32, M, Scales>>(engine, of, epilogue);
  else
    launch_e4m3_rows<scaled_tensor_nt<e4m3, 128, M, Scales>>(engine, of, epilogue);
}

}  // namespace gpu

template <class S, std::size_t M, class Epilogue>
void grouped_gemm_nt(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     rows_of<e4m3> a, std::array<grouped_matrix<e4m3 const>, M> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue) {
  static_assert(std::same_as<S, float> && M >= 1 && M <= 4);
  gpu::multiply_e4m3(engine, gpu::describe(gpu::ragged_rows{offsets, groups, rows_bound}, std::array{a}, w, n, k),
                     epilogue);
}

/// Scales lie as kernels/quantise.hpp says of block_scaled.
template <class S, std::size_t M, class Epilogue>
void grouped_gemm_nt(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     rows_of<e4m3> a, std::array<grouped_matrix<e4m3 const>, M> const& w,
                     gpu::block_scales<static_cast<int>(M)> const& scales, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  static_assert(std::same_as<S, float> && M >= 1 && M <= 4);
  static_assert(gpu::depth_of<e4m3> == gpu::block_scales<1>::side, "a step of a tile is a block of columns");
  constexpr int matrices = static_cast<int>(M);
  gpu::rows_product<e4m3, e4m3, 1, matrices, gpu::block_scales<matrices>> of{
      {offsets, groups, rows_bound}, n, k, {a}, {}, scales};
  for (std::size_t m = 0; m < M; ++m) of.w[m] = w[m];
  gpu::multiply_e4m3(engine, of, epilogue);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
