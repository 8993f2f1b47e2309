// SPDX-License-Identifier: Apache-2.0
// Row-major matrices: matrix_view<T> refers to memory, matrix<T> owns it. Sizes and strides are in elements.
//
//   x.rows()  x.cols()  x.stride()     extents, and the distance from one row to the next
//   x(i, j)   x.row(i)                 an element, a pointer to a row
//   x.rows(first, count)               the view of some of the rows
//
// A matrix is zeroed when made. Its memory comes from a std::pmr::memory_resource, aligned to 64 bytes.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <type_traits>
#include <utility>

namespace moiety::inline MOIETY_ABI {

/// Alignment of every block of memory that the library asks for.
inline constexpr std::size_t memory_alignment = 64;

namespace detail {

/// So many bytes, and what is missing to the next block's alignment.
constexpr std::int64_t whole_blocks(std::int64_t bytes) {
  constexpr auto alignment = static_cast<std::int64_t>(memory_alignment);
  return (bytes + alignment - 1) / alignment * alignment;
}

template <class U, class T>
concept mutable_version_of = !std::same_as<U, T> && std::same_as<U const, T>;

/// Whether a T may stand at this address.
template <class T> bool is_aligned(void const* address) {
  return reinterpret_cast<std::uintptr_t>(address) % alignof(T) == 0;
}
}  // namespace detail

template <class T> class matrix_view {
 public:
  matrix_view() = default;
  MOIETY_HD constexpr matrix_view(T* data, std::int64_t rows, std::int64_t cols)
      : matrix_view(data, rows, cols, cols) {}
  MOIETY_HD constexpr matrix_view(T* data, std::int64_t rows, std::int64_t cols, std::int64_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {}
  template <detail::mutable_version_of<T> U>
  MOIETY_HD constexpr matrix_view(matrix_view<U> other)
      : matrix_view(other.data(), other.rows(), other.cols(), other.stride()) {}

  MOIETY_HD constexpr T* data() const { return data_; }
  MOIETY_HD constexpr std::int64_t rows() const { return rows_; }
  MOIETY_HD constexpr std::int64_t cols() const { return cols_; }
  MOIETY_HD constexpr std::int64_t stride() const { return stride_; }
  MOIETY_HD constexpr T* row(std::int64_t i) const { return data_ + i * stride_; }
  MOIETY_HD constexpr T& operator()(std::int64_t i, std::int64_t j) const { return data_[i * stride_ + j]; }
  MOIETY_HD constexpr matrix_view rows(std::int64_t first, std::int64_t count) const {
    return {data_ + first * stride_, count, cols_, stride_};
  }

 private:
  T* data_ = nullptr;
  std::int64_t rows_ = 0, cols_ = 0, stride_ = 0;
};

/// Memory with one owner; what fails to be had is a resource_error that names the size.
class buffer {
 public:
  buffer() = default;
  buffer(std::int64_t bytes, std::pmr::memory_resource& memory) : bytes_(bytes), memory_(&memory) {
    if (bytes == 0) return;
    try {
      data_ = memory.allocate(static_cast<std::size_t>(bytes), memory_alignment);
    } catch (std::bad_alloc const&) {
      throw resource_error(detail::sentence("out of memory: ", bytes, " bytes could not be allocated."));
    }
  }
  buffer(buffer&& other) noexcept { swap(other); }
  buffer& operator=(buffer&& other) noexcept {
    buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~buffer() {
    if (data_ != nullptr) memory_->deallocate(data_, static_cast<std::size_t>(bytes_), memory_alignment);
  }

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  void swap(buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(memory_, other.memory_);
  }

  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  std::pmr::memory_resource* memory_ = nullptr;
};

namespace detail {
/// Bytes of a matrix; a shape that none can have is a data_error.
template <class T> std::int64_t matrix_bytes(std::int64_t rows, std::int64_t cols) {
  std::int64_t bytes = 0;
  bool const overflow = rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &bytes) ||
                        __builtin_mul_overflow(bytes, static_cast<std::int64_t>(sizeof(T)), &bytes);
  require<data_error>(!overflow, "a matrix cannot have the shape ", shape(rows, cols), '.');
  return bytes;
}
}  // namespace detail

template <class T> class matrix {
 public:
  matrix() = default;
  matrix(std::int64_t rows, std::int64_t cols) : matrix(rows, cols, *std::pmr::new_delete_resource()) {}
  matrix(std::int64_t rows, std::int64_t cols, std::pmr::memory_resource& memory)
      : memory_(detail::matrix_bytes<T>(rows, cols), memory), rows_(rows), cols_(cols) {
    std::uninitialized_value_construct_n(data(), rows * cols);
  }

  T* data() { return static_cast<T*>(memory_.data()); }
  T const* data() const { return static_cast<T const*>(memory_.data()); }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t stride() const { return cols_; }
  std::size_t size() const { return static_cast<std::size_t>(rows_ * cols_); }
  T& operator()(std::int64_t i, std::int64_t j) { return data()[i * cols_ + j]; }
  T const& operator()(std::int64_t i, std::int64_t j) const { return data()[i * cols_ + j]; }
  T* row(std::int64_t i) { return data() + i * cols_; }
  T const* row(std::int64_t i) const { return data() + i * cols_; }
  T* begin() { return data(); }
  T* end() { return data() + size(); }
  T const* begin() const { return data(); }
  T const* end() const { return data() + size(); }

  matrix_view<T> view() { return {data(), rows_, cols_}; }
  matrix_view<T const> view() const { return {data(), rows_, cols_}; }
  operator matrix_view<T>() { return view(); }
  operator matrix_view<T const>() const { return view(); }
  matrix_view<T> rows(std::int64_t first, std::int64_t count) { return view().rows(first, count); }
  matrix_view<T const> rows(std::int64_t first, std::int64_t count) const { return view().rows(first, count); }

 private:
  buffer memory_;
  std::int64_t rows_ = 0, cols_ = 0;
};

}  // namespace moiety
