// SPDX-License-Identifier: Apache-2.0
// Grouped products of operands that are quantised to e4m3, see kernels/quantise.hpp; what products and epilogues are is in
// kernels/grouped_gemm.hpp.
//
//   y_m(r, c) = s(r) t_m(c) sum over k of q(r, k) w_m(c, k)     q and s: the rows, quantised by the call; w_m and t_m: matrices
//                                                               that quantise_matrices made
//
//   e4m3_engine by{engine, rows, rows_bound};
//   grouped_gemm_nt<float>(by, groups, offsets, a, w, n, k, epilogue)     as of an engine
//   grouped_gemm_nn<float>(by, groups, offsets, a, w, n, k, epilogue)     M operands [rows × k], which are quantised side by side
//                                                                         with one scale; so is w, one matrix of n × M k
//
// Scales are powers of two: on the host the sums are those of the values that the quantised operands stand for, bit by bit,
// where nothing is below 2⁻¹²⁶. Matrices that are not quantised are multiplied as without e4m3_engine.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/quantise.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

/// Products of `of` whose rows are quantised in `room`, of rows_bound rows as wide as those of any product.
template <class Engine> struct e4m3_engine {
  Engine& of;
  quantised_rows room;
  std::int64_t rows_bound;
};

namespace host_gemm {

/// Columns col … col + cols − 1 of sums, scaled.
inline void scale_columns(float const* sums, float by_row, float const* by_column, std::int64_t cols, float* to) {
  for (std::int64_t c = 0; c < cols; ++c) to[c] = sums[c] * by_row * by_column[c];
}

using scaled_block = float[static_cast<std::size_t>(column_block<float>)];

}  // namespace host_gemm

template <class S, class T, std::size_t M, class Epilogue>
void grouped_gemm_nt(e4m3_engine<host_engine> const& by, std::int64_t groups, std::int64_t const* offsets, rows_of<T> a,
                     std::array<quantised_matrix, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  static_assert(std::same_as<S, float>);
  quantise_rows(by.of, groups, offsets, by.rows_bound, std::array{a}, k, by.room);
  std::array<grouped_matrix<e4m3 const>, M> matrices;
  for (std::size_t m = 0; m < M; ++m) matrices[m] = w[m].matrix(n, k);
  auto const scaled = [&](std::int64_t group, std::int64_t row, std::int64_t col, std::int64_t cols,
                          std::array<float const*, M> const& sums) {
    host_gemm::scaled_block blocks[M];
    std::array<float const*, M> all;
    for (std::size_t m = 0; m < M; ++m) {
      host_gemm::scale_columns(sums[m], by.room.scales[row], w[m].scales + group * n + col, cols, blocks[m]);
      all[m] = blocks[m];
    }
    epilogue(group, row, col, cols, all);
  };
  grouped_gemm_nt<float>(by.of, groups, offsets, rows_of<e4m3>{by.room.values, quantised_stride(k)}, matrices, n, k,
                         scaled);
}

template <class S, class T, std::size_t M, class Epilogue>
void grouped_gemm_nn(e4m3_engine<host_engine> const& by, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<T>, M> const& a, std::array<quantised_matrix, 1> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue) {
  static_assert(std::same_as<S, float>);
  std::int64_t const columns = static_cast<std::int64_t>(M) * k;
  quantise_rows(by.of, groups, offsets, by.rows_bound, a, k, by.room);
  auto const scaled = [&](std::int64_t group, std::int64_t row, std::int64_t col, std::int64_t cols,
                          std::array<float const*, 1> const& sums) {
    host_gemm::scaled_block block;
    host_gemm::scale_columns(sums[0], by.room.scales[row], w[0].scales + group * n + col, cols, block);
    epilogue(group, row, col, cols, static_cast<float const*>(block));
  };
  grouped_gemm_nt<float>(by.of, groups, offsets, rows_of<e4m3>{by.room.values, quantised_stride(columns)},
                         std::array{w[0].matrix(n, columns)}, n, columns, scaled);
}

template <class S, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(e4m3_engine<host_engine> const& by, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a,
                     std::array<grouped_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  grouped_gemm_nt<S>(by.of, groups, offsets, a, w, n, k, epilogue);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
