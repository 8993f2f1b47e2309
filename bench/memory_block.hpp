// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include <sys/mman.h>

namespace bench {

/// Memory of huge pages where the system has them.
class memory_block {
 public:
  explicit memory_block(std::size_t bytes) : data_(std::aligned_alloc(huge, (bytes + huge - 1) / huge * huge)) {
    if (data_ == nullptr) throw std::bad_alloc();
    madvise(data_, bytes, MADV_HUGEPAGE);
    std::memset(data_, 1, bytes);
  }
  memory_block(memory_block const&) = delete;
  memory_block& operator=(memory_block const&) = delete;
  ~memory_block() { std::free(data_); }
  template <class T> T* as() const { return static_cast<T*>(data_); }

 private:
  static constexpr std::size_t huge = std::size_t{2} << 20;

  void* data_;
};

}  // namespace bench
