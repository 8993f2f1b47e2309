// SPDX-License-Identifier: Apache-2.0
// Matrix products by the library's grouped kernels. Group g owns the rows offsets[g] … offsets[g + 1] − 1 of the long
// operands, and the g-th of equal blocks of rows of the other.
#pragma once

#include "tensors.hpp"

#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

namespace lm {

using offsets = std::span<std::int64_t const>;

/// All rows of x in one group.
template <class View> std::array<std::int64_t, 2> one_group(View const& x) { return {0, x.rows()}; }

inline std::int64_t count(offsets groups) { return static_cast<std::int64_t>(groups.size()) - 1; }

template <class T> mo::kernels::rows_of<T> rows_of(mo::matrix_view<T const> x) { return {x.data(), x.stride()}; }

template <class T> mo::kernels::grouped_matrix<T> blocks_of(mo::matrix_view<T> w, offsets groups) {
  return {w.data(), w.rows() / count(groups) * w.stride(), w.stride()};
}

/// y = x wᵀ, group by group
template <class Context>
void multiply_nt(Context& ctx, offsets groups, const_view<Context> x, const_view<Context> w, view<Context> y) {
  auto const store = [y](std::int64_t, std::int64_t row, std::int64_t first, std::int64_t columns, auto const& sums) {
    std::copy_n(sums[0], columns, y.row(row) + first);
  };
  mo::kernels::grouped_gemm_nt<typename Context::element>(ctx.engine(), count(groups), groups.data(), rows_of(x),
                                                          std::array{blocks_of(w, groups)}, y.cols(), x.cols(), store);
}

/// y = x w, group by group
template <class Context>
void multiply_nn(Context& ctx, offsets groups, const_view<Context> x, const_view<Context> w, view<Context> y) {
  auto const store = [y](std::int64_t, std::int64_t row, std::int64_t first, std::int64_t columns, auto const* sums) {
    std::copy_n(sums, columns, y.row(row) + first);
  };
  mo::kernels::grouped_gemm_nn<typename Context::element>(ctx.engine(), count(groups), groups.data(),
                                                          std::array{rows_of(x)}, std::array{blocks_of(w, groups)},
                                                          y.cols(), x.cols(), store);
}

/// w = yᵀ x, group by group; or w += yᵀ x
template <class Context>
void multiply_tn(Context& ctx, offsets groups, const_view<Context> y, const_view<Context> x, view<Context> w,
                 bool accumulate = false) {
  mo::kernels::grouped_gemm_tn<typename Context::element>(ctx.engine(), count(groups), groups.data(), rows_of(y),
                                                          rows_of(x), blocks_of(w, groups), y.cols(), x.cols(),
                                                          accumulate);
}

}  // namespace lm
