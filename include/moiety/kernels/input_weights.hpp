// SPDX-License-Identifier: Apache-2.0
// Router weights that multiply what an expert is given, not what it gives (Llama-4): y_t = Σ_j expert(w_tj x_t).
//
//   gather_weighted          out[row_of(t, j)] = w_tj · x_t                              x [T × H], out [rows × H]
//   input_weight_gradients   dw_tj = ⟨d_row_of(t, j), x_t⟩, 0 without a row              d [rows × H]: gradients of out
//
// Sums are in the sum type and in the order of a row (batch/row.hpp). Rows of out beyond those of the permutation are left
// alone.
#pragma once

#include <moiety/kernels/host/input_weights.hpp>

namespace moiety::inline MOIETY_ABI::kernels {

template <scalar T>
void gather_weighted(cuda_engine& engine, permutation_view const& order, sum_t<T> const* weights,
                     matrix_view<T const> x, matrix_view<T> out);

template <scalar T>
void input_weight_gradients(cuda_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                            matrix_view<T const> x, sum_t<T>* by_slot);

}  // namespace moiety::inline MOIETY_ABI::kernels
