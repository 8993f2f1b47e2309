// SPDX-License-Identifier: Apache-2.0
// Matrix products by the library's grouped kernels. Group g owns the rows offsets[g] … offsets[g + 1] − 1 of the long
// operands, and the g-th of equal blocks of rows of the other.
#pragma once

#include "tensors.hpp"

#include <moiety/backend/kernel_list.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <vector>

namespace lm {

/// Where groups of rows begin.
class row_groups {
 public:
  row_groups(mo::arena& memory, std::vector<std::int64_t> const& begins)
      : begins_(memory, begins), rows_(begins.back()) {}

  std::int64_t count() const { return std::ssize(begins_.values) - 1; }
  std::int64_t rows() const { return rows_; }
  /// For kernels.
  std::int64_t const* offsets() const { return begins_.for_kernels(); }

 private:
  mo::kernel_list<std::int64_t> begins_;
  std::int64_t rows_;
};

/// All rows of x in one group.
template <class Context, class View> row_groups one_group(Context& ctx, View const& x) {
  return {ctx.memory(), {0, x.rows()}};
}

template <class T> mo::kernels::rows_of<T> rows_of(mo::matrix_view<T const> x) { return {x.data(), x.stride()}; }

template <class T> mo::kernels::grouped_matrix<T> blocks_of(mo::matrix_view<T> w, row_groups const& groups) {
  return {w.data(), w.rows() / groups.count() * w.stride(), w.stride()};
}

namespace detail {

template <class T>
void nt(mo::host_engine& engine, row_groups const& groups, mo::matrix_view<T const> x, mo::matrix_view<T const> w,
        mo::matrix_view<T> y) {
  auto const store = [y](std::int64_t, std::int64_t row, std::int64_t first, std::int64_t columns, auto const& sums) {
    std::copy_n(sums[0], columns, y.row(row) + first);
  };
  mo::kernels::grouped_gemm_nt<T>(engine, groups.count(), groups.offsets(), rows_of(x),
                                  std::array{blocks_of(w, groups)}, y.cols(), x.cols(), store);
}
template <class T>
void nn(mo::host_engine& engine, row_groups const& groups, mo::matrix_view<T const> x, mo::matrix_view<T const> w,
        mo::matrix_view<T> y) {
  auto const store = [y](std::int64_t, std::int64_t row, std::int64_t first, std::int64_t columns, auto const* sums) {
    std::copy_n(sums, columns, y.row(row) + first);
  };
  mo::kernels::grouped_gemm_nn<T>(engine, groups.count(), groups.offsets(), std::array{rows_of(x)},
                                  std::array{blocks_of(w, groups)}, y.cols(), x.cols(), store);
}

template <class T>
void tn(mo::host_engine& engine, row_groups const& groups, mo::matrix_view<T const> y, mo::matrix_view<T const> x,
        mo::matrix_view<T> w, bool accumulate) {
  mo::kernels::grouped_gemm_tn<T>(engine, groups.count(), groups.offsets(), rows_of(y), rows_of(x),
                                  blocks_of(w, groups), y.cols(), x.cols(), accumulate);
}

template <class T>
void nt(mo::cuda_engine& engine, row_groups const& groups, mo::matrix_view<T const> x, mo::matrix_view<T const> w,
        mo::matrix_view<T> y);
template <class T>
void nn(mo::cuda_engine& engine, row_groups const& groups, mo::matrix_view<T const> x, mo::matrix_view<T const> w,
        mo::matrix_view<T> y);

template <class T>
void tn(mo::cuda_engine& engine, row_groups const& groups, mo::matrix_view<T const> y, mo::matrix_view<T const> x,
        mo::matrix_view<T> w, bool accumulate);

}  // namespace detail

/// y = x wᵀ, group by group
template <class Context>
void multiply_nt(Context& ctx, row_groups const& groups, const_view<Context> x, const_view<Context> w,
                 view<Context> y) {
  detail::nt<typename Context::element>(ctx.engine(), groups, x, w, y);
}

/// y = x w, group by group
template <class Context>
void multiply_nn(Context& ctx, row_groups const& groups, const_view<Context> x, const_view<Context> w,
                 view<Context> y) {
  detail::nn<typename Context::element>(ctx.engine(), groups, x, w, y);
}

/// w = yᵀ x, group by group; or w += yᵀ x
template <class Context>
void multiply_tn(Context& ctx, row_groups const& groups, const_view<Context> y, const_view<Context> x, view<Context> w,
                 bool accumulate = false) {
  detail::tn<typename Context::element>(ctx.engine(), groups, y, x, w, accumulate);
}

}  // namespace lm
