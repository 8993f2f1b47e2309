// SPDX-License-Identifier: Apache-2.0
// Values that the host lists and kernels read: where the memory of a back end is the host's, they are the same; else kernels
// read a copy in that memory.
//
//   mo::kernel_list<std::int32_t> places(ctx.memory());
//   places.values.push_back(row);                          by the host
//   places.publish();                                      after the last change
//   kernel(places.for_kernels());                          in the order of the back end's calls
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class T> class kernel_list {
 public:
  explicit kernel_list(arena& memory, std::size_t count = 0) : values(count, &memory.for_lists()), memory_(&memory) {}
  kernel_list(arena& memory, std::vector<T> const& of)
      : values(of.begin(), of.end(), &memory.for_lists()), memory_(&memory) {
    publish();
  }

  void publish() {
    if (memory_->of_host()) return;
    copy_ = buffer(static_cast<std::int64_t>(values.size() * sizeof(T)), *memory_);
    memory_->store(copy_.data(), values.data(), copy_.bytes());
  }
  T const* for_kernels() const { return memory_->of_host() ? values.data() : static_cast<T const*>(copy_.data()); }

  std::pmr::vector<T> values;

 private:
  arena* memory_;
  buffer copy_{};
};

}  // namespace moiety
