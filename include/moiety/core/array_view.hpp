// SPDX-License-Identifier: Apache-2.0
// A pointer and a count: std::span for host and device, to and from which it converts.
#pragma once

#include <moiety/core/config.hpp>

#include <cstddef>
#include <span>

namespace moiety::inline MOIETY_ABI {

template <class T> class array_view {
 public:
  array_view() = default;
  MOIETY_HD constexpr array_view(T* data, std::size_t size) : data_(data), size_(size) {}
  constexpr array_view(std::span<T> from) : array_view(from.data(), from.size()) {}

  MOIETY_HD constexpr T* data() const { return data_; }
  MOIETY_HD constexpr std::size_t size() const { return size_; }
  MOIETY_HD constexpr T* begin() const { return data_; }
  MOIETY_HD constexpr T* end() const { return data_ + size_; }
  MOIETY_HD constexpr T& operator[](std::size_t i) const { return data_[i]; }
  constexpr operator std::span<T>() const { return {data_, size_}; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace moiety
