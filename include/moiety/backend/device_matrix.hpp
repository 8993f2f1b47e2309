// SPDX-License-Identifier: Apache-2.0
// A matrix in memory that host code cannot read: an owner of rows, as matrix<T> is, whose elements are reached by kernels
// and through copies.
//
//   x.view()          the view that layers and kernels take
//   x.host()          a copy in host memory; waits for the work before it
//   x.assign(values)  from host memory, of the same shape
//
// Zeroed when made; row-major without gaps.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class T> class device_matrix {
 public:
  device_matrix() = default;
  device_matrix(std::int64_t rows, std::int64_t cols, arena& memory)
      : block_(detail::matrix_bytes<T>(rows, cols), memory), memory_(&memory), rows_(rows), cols_(cols) {
    if (block_.bytes() > 0) memory.zero(block_.data(), block_.bytes());
  }

  T* data() { return static_cast<T*>(block_.data()); }
  T const* data() const { return static_cast<T const*>(block_.data()); }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t stride() const { return cols_; }
  std::size_t size() const { return static_cast<std::size_t>(rows_ * cols_); }

  matrix_view<T> view() { return {data(), rows_, cols_}; }
  matrix_view<T const> view() const { return {data(), rows_, cols_}; }
  operator matrix_view<T>() { return view(); }
  operator matrix_view<T const>() const { return view(); }
  matrix_view<T> rows(std::int64_t first, std::int64_t count) { return view().rows(first, count); }
  matrix_view<T const> rows(std::int64_t first, std::int64_t count) const { return view().rows(first, count); }

  matrix<T> host() const {
    matrix<T> copy(rows_, cols_);
    if (block_.bytes() > 0) memory_->load(copy.data(), data(), block_.bytes());
    return copy;
  }

  void assign(matrix_view<T const> values) {
    detail::require<data_error>(values.rows() == rows_ && values.cols() == cols_, "a matrix of the shape ",
                                detail::shape(rows_, cols_), " cannot be assigned ",
                                detail::shape(values.rows(), values.cols()), '.');
    auto const row_bytes = cols_ * static_cast<std::int64_t>(sizeof(T));
    if (values.stride() == cols_) return memory_->store(data(), values.data(), block_.bytes());
    for (std::int64_t i = 0; i < rows_; ++i) memory_->store(data() + i * cols_, values.row(i), row_bytes);
  }

 private:
  buffer block_;
  arena* memory_ = nullptr;
  std::int64_t rows_ = 0, cols_ = 0;
};

}  // namespace moiety
