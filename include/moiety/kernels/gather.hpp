// SPDX-License-Identifier: Apache-2.0
// The permuted copy of tokens: what a dispatcher sends.
//
//   out[r] = x[source_token(r)]     for every row r of the permutation; x [T × H], out [rows × H]
//
//   gather(engine, order, x, out)           stores pass the caches by where out is larger than the last one
//   gather(engine, order, x, out, stores)   stores::cached or stores::streamed; the values are the same
//
// Rows of out beyond those of the permutation are left alone. Nothing may overlap.
#pragma once

#include <moiety/kernels/host/gather.hpp>

namespace moiety::inline MOIETY_ABI::kernels {

template <scalar T>
void gather(cuda_engine& engine, permutation_view const& order, matrix_view<T const> x, matrix_view<T> out);

}  // namespace moiety::inline MOIETY_ABI::kernels
