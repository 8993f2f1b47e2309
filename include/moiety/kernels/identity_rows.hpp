// SPDX-License-Identifier: Apache-2.0
// The rows of zero-compute experts, which return what they are given: those of experts `first` and later of a permutation.
//
//   pass_rows            out[r] = w_r in[r]
//   pass_rows_backward   dx[r] = w_r dy[r];  parts[r · count] = ⟨dy[r], x[r]⟩ and 0 in the other count − 1
//
// Null weights are 1, null parts are not written. Sums are in the sum type and in the order of a row (batch/row.hpp). Rows
// of other experts are left alone.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/host/input_weights.hpp>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {

/// f(row) for every row of the experts from `first` on.
template <class F>
void for_rows_from(host_engine& engine, permutation_view const& order, std::int64_t first, F const& f) {
  std::int64_t const begin = order.starts[first];
  engine.for_blocks(order.rows() - begin, 16, [&](std::int64_t r, std::int64_t end, int) {
    for (; r < end; ++r) f(begin + r);
  });
}

template <scalar T> void scale_row(sum_t<T> const* weight, T const* from, std::int64_t count, T* to) {
  if (weight == nullptr) return static_cast<void>(std::copy_n(from, count, to));
  for (std::int64_t c = 0; c < count; ++c) to[c] = static_cast<T>(*weight * static_cast<sum_t<T>>(from[c]));
}

}  // namespace detail

template <scalar T>
void pass_rows(host_engine& engine, permutation_view const& order, std::int64_t first, rows_of<T> in,
               sum_t<T> const* row_weights, matrix_view<T> out) {
  detail::for_rows_from(engine, order, first, [&](std::int64_t r) {
    detail::scale_row(row_weights != nullptr ? row_weights + r : nullptr, in.row(r), out.cols(), out.row(r));
  });
}

template <scalar T>
void pass_rows_backward(host_engine& engine, permutation_view const& order, std::int64_t first, rows_of<T> dy,
                        rows_of<T> x, sum_t<T> const* row_weights, sum_t<T>* parts, std::int64_t count,
                        matrix_view<T> dx) {
  detail::for_rows_from(engine, order, first, [&](std::int64_t r) {
    detail::scale_row(row_weights != nullptr ? row_weights + r : nullptr, dy.row(r), dx.cols(), dx.row(r));
    if (parts == nullptr) return;
    std::fill_n(parts + r * count, count, sum_t<T>{0});
    parts[r * count] = detail::dot_of(dy.row(r), x.row(r), dx.cols());
  });
}

template <scalar T>
void pass_rows(cuda_engine& engine, permutation_view const& order, std::int64_t first, rows_of<T> in,
               sum_t<T> const* row_weights, matrix_view<T> out);

template <scalar T>
void pass_rows_backward(cuda_engine& engine, permutation_view const& order, std::int64_t first, rows_of<T> dy,
                        rows_of<T> x, sum_t<T> const* row_weights, sum_t<T>* parts, std::int64_t count,
                        matrix_view<T> dx);

}  // namespace moiety::inline MOIETY_ABI::kernels
