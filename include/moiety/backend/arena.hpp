// SPDX-License-Identifier: Apache-2.0
// Memory that is asked for once and used again, step after step.
//
// An arena is a std::pmr::memory_resource over another one, the hook. A freed block waits in the arena, and serves the
// next request of at most its size and at least half of it; blocks may be freed in any order. A request that no waiting
// block serves goes to the hook, after the waiting blocks that it outgrew went back there. Blocks of the host of 2 MiB and
// more are aligned to huge pages. A block that a recording used (a call captured into a graph) serves recordings alone from
// then on, and goes back when the arena ends: replays use it. Safe to use from several threads.
//
// The memory may be a device's. Host code reads and writes it through three functions, whose work is done in the order
// of the calls of the back end:
//
//   zero(to, bytes)          fills with zero bytes
//   store(to, from, bytes)   from host memory, which is free when the call returns
//   load(to, from, bytes)    into host memory; waits for all work before it
//
//   of_host()                whether host code reads and writes the memory itself
//   for_lists()              where the host keeps lists beside it: this memory if it is the host's, else the heap
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory_resource>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace moiety::inline MOIETY_ABI {

class arena : public std::pmr::memory_resource {
 public:
  explicit arena(std::pmr::memory_resource& hook) : hook_(hook) {}
  arena(arena const&) = delete;
  arena& operator=(arena const&) = delete;
  ~arena() override { give_back_all(); }

  /// Gives every waiting block back to the hook, but for those of recordings.
  void release() {
    std::scoped_lock const lock(mutex_);
    while (!waiting_.empty()) give_back(waiting_, waiting_.begin());
  }

  virtual void zero(void* to, std::int64_t bytes) {
    if (bytes > 0) std::memset(to, 0, static_cast<std::size_t>(bytes));
  }
  virtual void store(void* to, void const* from, std::int64_t bytes) { copy(to, from, bytes); }
  virtual void load(void* to, void const* from, std::int64_t bytes) { copy(to, from, bytes); }

  virtual bool of_host() const { return true; }
  std::pmr::memory_resource& for_lists() { return of_host() ? *this : *std::pmr::new_delete_resource(); }

 protected:
  static constexpr std::size_t huge_page = std::size_t{2} << 20;

  /// Whether calls are being recorded, to be replayed later.
  virtual bool records() const { return false; }
  /// Throws where a recording would need a new block.
  virtual void refuse_in_recording(std::size_t) const {}
  virtual std::size_t alignment_of(std::size_t bytes) const {
    return bytes >= huge_page ? huge_page : memory_alignment;
  }

  /// A new block of the hook is at hand: host memory asks for huge pages.
  virtual void taken_from_hook([[maybe_unused]] void* block, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
    if (bytes >= huge_page) ::madvise(block, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
  }

  void give_back_all() {
    std::scoped_lock const lock(mutex_);
    for (waiting_blocks* blocks : {&waiting_, &recorded_})
      while (!blocks->empty()) give_back(*blocks, blocks->begin());
  }

  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (alignment > memory_alignment) throw std::bad_alloc();
    std::scoped_lock const lock(mutex_);
    bool const recorded = records();
    for (waiting_blocks* blocks : {&recorded_, &waiting_}) {
      if (blocks == &recorded_ && !recorded) continue;
      auto const fit = blocks->lower_bound(bytes);
      if (fit == blocks->end() || fit->first / 2 > bytes) continue;
      return take(*blocks, fit, recorded);
    }
    if (recorded) refuse_in_recording(bytes);
    for (auto outgrown = waiting_.lower_bound(bytes / 2); outgrown != waiting_.lower_bound(bytes);)
      give_back(waiting_, outgrown++);
    auto const fresh = waiting_.emplace(bytes, nullptr);
    try {
      fresh->second = hook_.allocate(bytes, alignment_of(bytes));
    } catch (...) {
      waiting_.erase(fresh);
      throw;
    }
    taken_from_hook(fresh->second, bytes);
    return take(waiting_, fresh, recorded);
  }

  void do_deallocate(void* block, std::size_t, std::size_t) override {
    std::scoped_lock const lock(mutex_);
    auto const taken = taken_.find(block);
    (taken->second.recorded ? recorded_ : waiting_).insert(std::move(taken->second.entry));
    taken_.erase(taken);
  }

 private:
  using waiting_blocks = std::multimap<std::size_t, void*>;
  struct taken_block {
    waiting_blocks::node_type entry;  // kept, so that to free a block asks for no memory
    bool recorded = false;
  };

  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

  static void copy(void* to, void const* from, std::int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  /// A block that waits is taken; it waits on where there is no memory to note it.
  void* take(waiting_blocks& blocks, waiting_blocks::iterator block, bool recorded) {
    auto const noted = taken_.try_emplace(block->second).first;
    noted->second = {blocks.extract(block), recorded};
    return noted->first;
  }

  void give_back(waiting_blocks& blocks, waiting_blocks::iterator block) {
    hook_.deallocate(block->second, block->first, alignment_of(block->first));
    blocks.erase(block);
  }

  std::pmr::memory_resource& hook_;
  std::mutex mutex_;
  waiting_blocks waiting_, recorded_;
  std::unordered_map<void*, taken_block> taken_;
};

}  // namespace moiety
