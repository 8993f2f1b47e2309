// SPDX-License-Identifier: Apache-2.0
// Grouped matrix products: one matrix per group of rows, the arithmetic of the experts.
//
// Rows 0 ... R-1 form a row space that is cut into consecutive groups: group g owns rows offsets[g] ... offsets[g+1]-1
// (offsets has groups + 1 ascending entries; any group may be empty). With W_g the matrix of group g:
//
//   grouped_gemm_nt   y(r, c) = sum_k a(r, k) W_g(c, k)          forward: rows times stored weights [n x k]
//   grouped_gemm_nn   y(r, c) = sum_m sum_k a_m(r, k) W_m,g(k, c) input gradient: weights [k x n], M products in one sum
//   grouped_gemm_tn   W_g(i, j) (+)= sum_r a(r, i) b(r, j)       weight gradient: over the rows r of group g
//
// Numeric contract. S (float or double) is the type of the sums; operands of any number type are widened to it exactly.
// Each output is the chain  acc = fma(a_k, b_k, acc)  for ascending k (m first, then k in nn; ascending r in tn), from
// acc = +0, or in tn with `accumulate` from the value that is there. Two bf16 operands are summed in pairs of k (of rows
// of a group in tn), the second of each first; their instruction takes denormals as zero. A chain is never split, so the
// bits do not depend on the number of rows, groups, threads, tiles, on packing, or on the instruction set (given one with
// fma, and without denormals of bf16 products; else fma is a * b + c).
//
// Results of nt and nn leave through an epilogue, called exactly once for each row and column block b, whose columns
// are b * column_block<S> ... min(n, (b + 1) * column_block<S>) - 1 whatever the number of rows or threads:
//
//   nt   epilogue(group, row, first_column, columns, std::array<S const*, M> const& sums)   sums[m][c], c < columns
//   nn   epilogue(group, row, first_column, columns, S const* sums)
//
// It runs on the worker threads, several rows at a time but each (row, block) on one, in no promised order; k = 0 gives
// zeros. tn writes zeros for an empty group, and with `accumulate` leaves it alone. Memory between strides is not touched.
// Nothing is allocated: operands are packed into the engine's per-worker scratch. What an epilogue throws comes out.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

/// Rows of a matrix, as they lie or gathered: row r is data + (index ? index[r] : r) * stride.
template <class T> struct rows_of {
  T const* data = nullptr;
  std::int64_t stride = 0;
  std::int32_t const* index = nullptr;

  MOIETY_HD T const* row(std::int64_t r) const {
    return data + (index != nullptr ? std::int64_t{index[r]} : r) * stride;
  }
};

/// One row-major matrix per group.
template <class T> struct grouped_matrix {
  T* data = nullptr;
  std::int64_t group_stride = 0, row_stride = 0;

  T* group(std::int64_t g) const { return data + g * group_stride; }
};

/// A matrix of each group that lies as its transpose: element (i, j) in column i of row j.
template <class T> struct transposed_matrix {
  T* data = nullptr;
  std::int64_t group_stride = 0, row_stride = 0;

  /// What lies there.
  grouped_matrix<T> lying() const { return {data, group_stride, row_stride}; }
};

/// Weights packed for one direction of product, see pack_nt and pack_nn. They hold what the matrices held when packed.
template <class T> struct packed_matrix {
  std::byte const* data = nullptr;
  std::int64_t group_bytes = 0;
};

/// Columns that one call of an epilogue covers, except at the right edge.
template <class S> inline constexpr std::int64_t column_block = 256;

/// y_m(r, c) = sum over k of a(r, k) w_m(c, k) for M matrices [n x k] of each group side by side.
template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a,
                     std::array<grouped_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue);

/// y(r, c) = sum over m, then k, of a_m(r, k) w_m(k, c) with w_m [k x n] of each group.
template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nn(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<A>, M> const& a, std::array<grouped_matrix<B const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue);

/// The same bits as from matrices that lie as they are: w [n x k] of nt lies as [k x n], w [k x n] of nn as [n x k].
template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a,
                     std::array<transposed_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue);
template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nn(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<A>, M> const& a, std::array<transposed_matrix<B const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue);

/// out(i, j) = sum over rows r of the group of a(r, i) b(r, j), i < n, j < k; added to what is there if `accumulate`.
template <class S, class Engine, class A, class B>
void grouped_gemm_tn(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a, rows_of<B> b,
                     grouped_matrix<S> out, std::int64_t n, std::int64_t k, bool accumulate);

/// Whether there are kernels of T for which it pays to gather rows once, before products read them in order; whether an engine
/// has them and takes them for so many rows, wants_rows_in_order<T>(engine, groups, rows_bound) says.
template <class T, class Engine> inline constexpr bool may_want_rows_in_order = false;
template <class T> inline constexpr bool may_want_rows_in_order<T, cuda_engine> = sizeof(T) == 2;
template <class T> bool wants_rows_in_order(cuda_engine const& engine, std::int64_t groups, std::int64_t rows_bound);

/// Bytes of one group's packed matrix of n columns and sums over k.
template <class T> constexpr std::int64_t packed_bytes(std::int64_t n, std::int64_t k);

/// Packs weights [n x k] of each group for grouped_gemm_nt into groups * packed_bytes<T>(n, k) bytes.
template <class Engine, class T>
void pack_nt(Engine& engine, std::int64_t groups, grouped_matrix<T const> w, std::int64_t n, std::int64_t k,
             std::byte* to);

/// Packs weights [k x n] of each group for grouped_gemm_nn.
template <class Engine, class T>
void pack_nn(Engine& engine, std::int64_t groups, grouped_matrix<T const> w, std::int64_t n, std::int64_t k,
             std::byte* to);

/// The same copies of matrices that lie as their transposes.
template <class Engine, class T>
void pack_nt(Engine& engine, std::int64_t groups, transposed_matrix<T const> w, std::int64_t n, std::int64_t k,
             std::byte* to) {
  pack_nn(engine, groups, w.lying(), n, k, to);
}
template <class Engine, class T>
void pack_nn(Engine& engine, std::int64_t groups, transposed_matrix<T const> w, std::int64_t n, std::int64_t k,
             std::byte* to) {
  pack_nt(engine, groups, w.lying(), n, k, to);
}

/// The same bits as from the matrices that were packed, for rows of the weights' type.
template <class S, class Engine, class T, std::size_t M, class Epilogue>
void grouped_gemm_nt(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<T> a,
                     std::array<packed_matrix<T>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue);
template <class S, class Engine, class T, std::size_t M, class Epilogue>
void grouped_gemm_nn(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<T>, M> const& a, std::array<packed_matrix<T>, M> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue);

}  // namespace moiety::inline MOIETY_ABI::kernels

#include <moiety/kernels/host/grouped_gemm.hpp>
