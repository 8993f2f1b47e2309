// SPDX-License-Identifier: Apache-2.0
// Grouped products of quantised operands on a CUDA device, see kernels/scaled_gemm.hpp; their sums are those of
// portable/e4m3_gemm.cuh, and epilogues are those of tile_epilogue.cuh. Scales of rows and outputs multiply whole sums, on their
// way to the epilogue; those of blocks are for the kernel.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/array.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/e4m3_gemm.cuh>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/cuda/portable/quantise.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/quantise.hpp>
#include <moiety/kernels/scaled_gemm.hpp>

#include <cuda_runtime.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// What an epilogue reads of its own, another that hands over to it reads.
template <class Epilogue> struct read_through {};
template <reads_rows Epilogue> struct read_through<Epilogue> {
  template <int N> using saved = typename Epilogue::template saved<N>;
};

/// Hands scaled sums of M matrices of n columns to another epilogue. Kernels that scale them before they stage them hand
/// over to that one.
template <class Epilogue, std::size_t M> struct scaled_sums : read_through<Epilogue> {
  using inner_type = Epilogue;
  static constexpr bool sums_rows = gpu::sums_rows<Epilogue>;
  Epilogue inner;
  float const* by_row;
  array<float const*, M> by_column;  // [groups × n] each
  std::int64_t n;

  __device__ float of_row(std::int64_t row) const { return by_row[row]; }
  __device__ float of_column(std::int64_t group, int matrix, std::int64_t col) const {
    return by_column[static_cast<std::size_t>(matrix)][group * n + col];
  }

  template <int N, class... Saved>
  __device__ auto operator()(std::int64_t group, std::int64_t row, std::int64_t col, int count,
                             float const (&sums)[M][N], Saved const&... saved) const {
    float scaled[M][N];
    float const scale = by_row[row];
    MOIETY_REGISTERS
    for (std::size_t m = 0; m < M; ++m) {
      float columns[N];
      load_columns(by_column[m] + group * n + col, count, columns);
      MOIETY_REGISTERS
      for (int c = 0; c < N; ++c) scaled[m][c] = sums[m][c] * scale * columns[c];
    }
    return inner(group, row, col, count, scaled, saved...);
  }

  __device__ void row_sum(std::int64_t row, std::int64_t tile, float sum) const requires(sums_rows) {
    inner.row_sum(row, tile, sum);
  }
  template <int N>
  __device__ auto read(std::int64_t row, std::int64_t col, int count) const requires(reads_rows<Epilogue>) {
    return inner.template read<N>(row, col, count);
  }
};

}  // namespace gpu

template <std::size_t M, class Epilogue>
void multiply_scaled(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     quantised_operand<cuda_engine, row_scaled> const& a,
                     std::array<quantised_operand<cuda_engine, row_scaled>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  std::array<grouped_matrix<e4m3 const>, M> matrices;
  gpu::scaled_sums<Epilogue, M> scaled{{}, epilogue, a.scales, {}, n};
  for (std::size_t m = 0; m < M; ++m) {
    matrices[m] = w[m].matrices(n, k);
    scaled.by_column[m] = w[m].scales;
  }
  grouped_gemm_nt<float>(engine, groups, offsets, rows_bound, a.rows(k), matrices, n, k, scaled);
}

template <std::size_t M, class Epilogue>
void multiply_scaled(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     quantised_operand<cuda_engine, block_scaled> const& a,
                     std::array<quantised_operand<cuda_engine, block_scaled>, M> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue) {
  static_assert(block_scaled::columns == gpu::block_scales<1>::side &&
                block_scaled::outputs == gpu::block_scales<1>::side);
  std::array<grouped_matrix<e4m3 const>, M> matrices;
  gpu::block_scales<static_cast<int>(M)> scales{
      a.scales, {}, scales_of_row<block_scaled>(k), rows_of_scales<block_scaled>(n)};
  for (std::size_t m = 0; m < M; ++m) {
    matrices[m] = w[m].matrices(n, k);
    scales.by_block[m] = w[m].scales;
  }
  grouped_gemm_nt<float>(engine, groups, offsets, rows_bound, a.rows(k), matrices, scales, n, k, epilogue);
}

template <class S, class Scaling, class T, std::size_t M, class Epilogue>
void grouped_gemm_nt(e4m3_engine<cuda_engine, Scaling> const& by, std::int64_t groups, std::int64_t const* offsets,
                     std::int64_t rows_bound, rows_of<T> a,
                     std::array<quantised_operand<cuda_engine, Scaling>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  static_assert(std::same_as<S, float>);
  quantise_rows(by.of, groups, offsets, rows_bound, std::array{a}, k, by.room);
  multiply_scaled(by.of, groups, offsets, rows_bound, by.room, w, n, k, epilogue);
}

template <class S, class Scaling, class T, std::size_t M, class Epilogue>
void grouped_gemm_nn(e4m3_engine<cuda_engine, Scaling> const& by, std::int64_t groups, std::int64_t const* offsets,
                     std::int64_t rows_bound, std::array<rows_of<T>, M> const& a,
                     std::array<quantised_operand<cuda_engine, Scaling>, 1> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  static_assert(std::same_as<S, float>);
  quantise_rows(by.of, groups, offsets, rows_bound, a, k, by.room);
  multiply_scaled(by.of, groups, offsets, rows_bound, by.room, w, n, static_cast<std::int64_t>(M) * k, epilogue);
}

template <class S, class Scaling, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(e4m3_engine<cuda_engine, Scaling> const& by, std::int64_t groups, std::int64_t const* offsets,
                     std::int64_t rows_bound, rows_of<A> a, std::array<grouped_matrix<B const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue) {
  grouped_gemm_nt<S>(by.of, groups, offsets, rows_bound, a, w, n, k, epilogue);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
