// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/arena.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory_resource>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

namespace mo = moiety;

namespace {

struct counting final : std::pmr::memory_resource {
  std::int64_t live = 0, calls = 0;
  std::size_t alignment = 0;
  void* do_allocate(std::size_t bytes, std::size_t align) override {
    live += static_cast<std::int64_t>(bytes);
    ++calls;
    alignment = align;
    return std::pmr::new_delete_resource()->allocate(bytes, align);
  }
  void do_deallocate(void* block, std::size_t bytes, std::size_t align) override {
    live -= static_cast<std::int64_t>(bytes);
    std::pmr::new_delete_resource()->deallocate(block, bytes, align);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }
};

}  // namespace

TEST_CASE("a freed block serves the next request that it fits, and no much smaller one") {
  counting hook;
  mo::arena arena(hook);
  void* const first = arena.allocate(1000, 64);
  arena.deallocate(first, 1000, 64);
  CHECK(arena.allocate(900, 64) == first);
  CHECK(hook.calls == 1);
  arena.deallocate(first, 900, 64);
  void* const small = arena.allocate(400, 64);
  CHECK(small != first);
  void* const large = arena.allocate(1001, 64);  // the waiting block is outgrown, and goes back
  CHECK(hook.live == 1401);
  std::memset(large, 1, 1001);
  arena.deallocate(small, 400, 64);
  arena.deallocate(large, 1001, 64);
}

TEST_CASE("blocks are freed in any order, and steps ask the hook for nothing new") {
  counting hook;
  {
    mo::arena arena(hook);
    std::deque<void*> in_flight;
    for (int step = 0; step < 100; ++step) {
      in_flight.push_back(arena.allocate(640, 64));
      if (in_flight.size() > 4) {
        arena.deallocate(in_flight.front(), 640, 64);  // first in, first out
        in_flight.pop_front();
      }
    }
    CHECK(hook.calls == 5);
    for (void* const block : in_flight) arena.deallocate(block, 640, 64);
    arena.release();
    CHECK(hook.live == 0);
    arena.deallocate(arena.allocate(64, 64), 64, 64);
  }
  CHECK(hook.live == 0);
}

TEST_CASE("large blocks are aligned to huge pages; larger alignments than 64 are not promised") {
  counting hook;
  mo::arena arena(hook);
  void* const large = arena.allocate(std::size_t{3} << 20, 64);
  CHECK(hook.alignment == std::size_t{2} << 20);
  std::memset(large, 1, std::size_t{3} << 20);
  arena.deallocate(large, std::size_t{3} << 20, 64);
  CHECK_THROWS_AS((void)arena.allocate(64, 128), std::bad_alloc);
  CHECK(arena.is_equal(arena));
}

TEST_CASE("threads share an arena") {
  counting hook;
  mo::arena arena(hook);
  std::vector<std::thread> threads;
  for (int id = 1; id <= 4; ++id)
    threads.emplace_back([&arena, id] {
      for (int i = 0; i < 500; ++i) {
        auto const bytes = static_cast<std::size_t>(64 * (1 + (i * id) % 7));
        auto* const block = static_cast<unsigned char*>(arena.allocate(bytes, 64));
        std::memset(block, id, bytes);
        std::this_thread::yield();
        for (std::size_t b = 0; b < bytes; ++b)
          if (block[b] != id) std::abort();
        arena.deallocate(block, bytes, 64);
      }
    });
  for (std::thread& t : threads) t.join();
  arena.release();
  CHECK(hook.live == 0);
}

namespace {
struct recording final : mo::arena {
  using mo::arena::arena;
  bool on = false;
  bool records() const override { return on; }
  void refuse_in_recording(std::size_t) const override { throw std::logic_error("refused"); }
};
}  // namespace

TEST_CASE("a recording gets waiting blocks only, and keeps them from all others") {
  counting hook;
  {
    recording arena(hook);
    void* const first = arena.allocate(1000, 64);
    void* const other = arena.allocate(5000, 64);
    arena.deallocate(first, 1000, 64);
    arena.on = true;
    CHECK_THROWS_AS((void)arena.allocate(1001, 64), std::logic_error);
    CHECK(hook.live == 6000);  // nothing went back
    CHECK(arena.allocate(900, 64) == first);
    arena.deallocate(first, 900, 64);
    CHECK(arena.allocate(800, 64) == first);  // by the same recording or the next
    arena.deallocate(first, 800, 64);
    arena.on = false;
    void* const fresh = arena.allocate(900, 64);
    CHECK(fresh != first);
    arena.deallocate(fresh, 900, 64);
    arena.deallocate(other, 5000, 64);
    arena.release();
    CHECK(hook.live == 1000);
    arena.on = true;
    CHECK(arena.allocate(1000, 64) == first);
    arena.deallocate(first, 1000, 64);
  }
  CHECK(hook.live == 0);
}

TEST_CASE("host code reads and writes the memory of an arena through it") {
  mo::arena arena(*std::pmr::new_delete_resource());
  mo::buffer const block(16, arena);
  std::int32_t const values[4] = {1, -2, 3, 4};
  arena.store(block.data(), values, 16);
  std::int32_t copy[4] = {};
  arena.load(copy, block.data(), 16);
  CHECK(std::memcmp(values, copy, 16) == 0);
  arena.zero(block.data(), 8);
  arena.load(copy, block.data(), 16);
  CHECK((copy[0] == 0 && copy[1] == 0 && copy[2] == 3));
  CHECK_NOTHROW(arena.store(nullptr, nullptr, 0));
}

TEST_CASE("lists of the host lie in its memory, and beside that of others on the heap") {
  struct of_device : mo::arena {
    of_device() : arena(*std::pmr::new_delete_resource()) {}
    bool of_host() const override { return false; }
  } device;
  mo::arena host(*std::pmr::new_delete_resource());
  CHECK(host.of_host());
  CHECK(&host.for_lists() == &host);
  CHECK(&device.for_lists() == std::pmr::new_delete_resource());
}
