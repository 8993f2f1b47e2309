// SPDX-License-Identifier: Apache-2.0
// Grouped products of operands that are quantised to 8 bits, see kernels/quantise.hpp; what products and epilogues are is in
// kernels/grouped_gemm.hpp.
//
//   y_m(r, c) = sum over k of q s (r, k) q s (m, c, k)      rows, quantised by the call; matrices that quantise_matrices made
//
//   e4m3_engine<host_engine, row_scaled> by{engine, room};
//   grouped_gemm_nt<float>(by, groups, offsets, a, w, n, k, epilogue)     as of an engine
//   grouped_gemm_nn<float>(by, groups, offsets, a, w, n, k, epilogue)     M operands [rows × k], which are quantised side by side
//                                                                         as rows of M k; so is w, one matrix of n × M k
//
// On the host these are products of bf16, of the values that quantised operands stand for. Matrices that are not quantised are
// multiplied as without e4m3_engine.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/quantise.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

/// Products of `of` whose rows are quantised in `room`, which is as wide as those of any product.
template <class Engine, class Scaling> struct e4m3_engine {
  Engine& of;
  quantised_operand<Engine, Scaling> room;
};

template <class S, class Scaling, class T, std::size_t M, class Epilogue>
void grouped_gemm_nt(e4m3_engine<host_engine, Scaling> const& by, std::int64_t groups, std::int64_t const* offsets,
                     rows_of<T> a, std::array<quantised_operand<host_engine, Scaling>, M> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue) {
  static_assert(std::same_as<S, float>);
  quantise_rows(by.of, groups, offsets, offsets[groups], std::array{a}, k, by.room);
  std::array<grouped_matrix<bf16 const>, M> matrices;
  for (std::size_t m = 0; m < M; ++m) matrices[m] = w[m].matrices(n, k);
  grouped_gemm_nt<float>(by.of, groups, offsets, by.room.rows(k), matrices, n, k, epilogue);
}

template <class S, class Scaling, class T, std::size_t M, class Epilogue>
void grouped_gemm_nn(e4m3_engine<host_engine, Scaling> const& by, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<T>, M> const& a,
                     std::array<quantised_operand<host_engine, Scaling>, 1> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  static_assert(std::same_as<S, float>);
  std::int64_t const columns = static_cast<std::int64_t>(M) * k;
  quantise_rows(by.of, groups, offsets, offsets[groups], a, k, by.room);
  auto const hand_over = [&](std::int64_t group, std::int64_t row, std::int64_t col, std::int64_t cols,
                             std::array<float const*, 1> const& sums) { epilogue(group, row, col, cols, sums[0]); };
  grouped_gemm_nt<float>(by.of, groups, offsets, by.room.rows(columns), std::array{w[0].matrices(n, columns)}, n,
                         columns, hand_over);
}

template <class S, class Scaling, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(e4m3_engine<host_engine, Scaling> const& by, std::int64_t groups, std::int64_t const* offsets,
                     rows_of<A> a, std::array<grouped_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  grouped_gemm_nt<S>(by.of, groups, offsets, a, w, n, k, epilogue);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
