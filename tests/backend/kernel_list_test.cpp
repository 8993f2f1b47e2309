// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/kernel_list.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <numeric>
#include <vector>

namespace mo = moiety;

namespace {

/// Stands for the memory of a device: no list of the host may come from it, and stores are counted.
struct beyond_reach final : mo::arena {
  beyond_reach() : arena(*std::pmr::new_delete_resource()) {}
  bool of_host() const override { return false; }
  void store(void* to, void const* from, std::int64_t bytes) override {
    ++stores;
    arena::store(to, from, bytes);
  }
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    ++blocks;
    return arena::do_allocate(bytes, alignment);
  }
  int stores = 0, blocks = 0;
};

std::vector<std::int32_t> ascending(std::size_t count) {
  std::vector<std::int32_t> values(count);
  std::iota(values.begin(), values.end(), 5);
  return values;
}

}  // namespace

TEST_CASE("in memory of the host kernels read what the host has listed, where it lies") {
  mo::arena memory(*std::pmr::new_delete_resource());
  mo::kernel_list<std::int32_t> list(memory, 3);
  list.values.push_back(9);
  list.publish();
  CHECK(list.values.get_allocator().resource() == &memory);
  CHECK(list.for_kernels() == list.values.data());
  CHECK(list.for_kernels()[3] == 9);
}

TEST_CASE("elsewhere they read a copy in that memory, as it was when it was published") {
  beyond_reach memory;
  mo::kernel_list<std::int32_t> list(memory, 1000);
  CHECK(memory.blocks == 0);
  std::iota(list.values.begin(), list.values.end(), 5);
  list.publish();
  CHECK(memory.blocks == 1);
  CHECK(list.for_kernels() != list.values.data());
  list.values[0] = 77;
  CHECK(std::memcmp(list.for_kernels(), ascending(1000).data(), 4000) == 0);
  list.publish();
  CHECK(list.for_kernels()[0] == 77);
}

TEST_CASE("a list of given values is published at once; an empty one is no block") {
  beyond_reach memory;
  mo::kernel_list<std::int32_t> const some(memory, ascending(7)), none(memory, ascending(0));
  CHECK(std::memcmp(some.for_kernels(), ascending(7).data(), 28) == 0);
  CHECK(memory.blocks == 1);
  CHECK(none.for_kernels() == nullptr);
}
