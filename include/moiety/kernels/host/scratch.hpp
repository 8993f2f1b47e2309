// SPDX-License-Identifier: Apache-2.0
// Pieces of a worker's scratch memory, handed out in order and value-initialised.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

class scratch_memory {
 public:
  explicit scratch_memory(std::span<std::byte> memory) : left_(memory) {}

  template <class T> std::span<T> take(std::int64_t count) {
    std::size_t const bytes = static_cast<std::size_t>(count) * sizeof(T);
    std::size_t const padded = (bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
    moiety::detail::require<config_error>(padded <= left_.size(), "a worker's scratch memory cannot hold ", count,
                                          " more values of ", sizeof(T), " bytes.");
    T* const data = reinterpret_cast<T*>(left_.data());
    std::uninitialized_value_construct_n(data, count);
    left_ = left_.subspan(padded);
    return {data, static_cast<std::size_t>(count)};
  }

  template <class S> span_row<S> row(std::int64_t size) { return {take<S>(size).data(), size}; }

 private:
  std::span<std::byte> left_;
};

}  // namespace kernels
}  // namespace moiety
