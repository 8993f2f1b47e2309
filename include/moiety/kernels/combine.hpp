// SPDX-License-Identifier: Apache-2.0
// From the rows of experts back to tokens: gather and sum over the slots in their fixed order, in the sum type.
//
//   y_t = base_t + Σ_{j = 0 … k−1} w_tj · o[row_of(t, j)]
//
//   combine(engine, order, o, weights, base, y)           stores pass the caches by where y is larger than the last one
//   combine(engine, order, o, weights, base, y, stores)   stores::cached or stores::streamed; the values are the same
//
//   combine_sums(engine, order, o, weights, base, sums)     the same, unrounded; sums may be base
//
// base [T × H] and weights [T × k] may be null: 0 and 1. A token that is not dispatched gets its base alone.
#pragma once

#include <moiety/kernels/host/combine.hpp>

namespace moiety::inline MOIETY_ABI::kernels {

template <scalar T>
void combine(cuda_engine& engine, permutation_view const& order, matrix_view<T const> rows, sum_t<T> const* weights,
             sum_t<T> const* base, matrix_view<T> y);

template <scalar T>
void combine_sums(cuda_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                  sum_t<T> const* weights, sum_t<T> const* base, matrix_view<sum_t<T>> sums);

}  // namespace moiety::inline MOIETY_ABI::kernels
