// SPDX-License-Identifier: Apache-2.0
// Barriers that count arrivals and bytes (mbarriers), and what the async proxy may read. Stricter than a GPU: a barrier is
// made once, published by its maker, and used by other warps only after a barrier of the block.
#pragma once

#include "device.hpp"

namespace cuda_on_cpu {

inline constexpr std::int64_t mbarrier_limit = 1 << 20;         // of arrivals and of bytes
inline constexpr std::uint64_t mbarrier_mark = 0x7a11cc0117e5;  // what shared memory holds in the place of its state

inline void make_mbarrier(std::uint64_t* at, unsigned arrivals) {
  block& b = block::running;
  thread const& me = b.self();
  if (reinterpret_cast<std::uintptr_t>(at) % 8 != 0) fail(me, "it makes a barrier at no multiple of 8 bytes");
  if (arrivals == 0 || arrivals >= mbarrier_limit)
    fail(me, "it makes a barrier of " + std::to_string(arrivals) + " arrivals");
  mbarrier made{.arrivals = arrivals, .missing = arrivals, .maker = &me};
  made.place = reinterpret_cast<std::byte*>(at) - b.shared();
  if (!b.mbarriers.try_emplace(at, made).second) fail(me, "it makes a barrier where there is one");
  *at = mbarrier_mark;
}

inline void publish_mbarriers() {
  block& b = block::running;
  for (auto& [at, counter] : b.mbarriers)
    if (counter.maker == &b.self() && !counter.published) counter.published = true, counter.made = b.barriers();
}

inline mbarrier& find_mbarrier(std::uint64_t* at) {
  block& b = block::running;
  auto const found = b.mbarriers.find(at);
  if (found == b.mbarriers.end()) fail(b.self(), "it uses a barrier that has not been made");
  mbarrier& counter = found->second;
  if (*at != mbarrier_mark) fail(b.self(), "it uses a barrier that has been overwritten");
  if (!counter.published) fail(b.self(), "it uses a barrier that has not been published");
  if (counter.made == b.barriers() && counter.maker->number / 32 != b.self().number / 32)
    fail(b.self(), "it uses a barrier of another warp without a barrier of the block in between");
  return counter;
}

inline void complete_phase(mbarrier& counter) {
  if (counter.missing != 0 || counter.bytes != 0) return;
  counter.missing = counter.arrivals;
  ++counter.phase;
  block::running.wake_waiters(counter);
}

inline void change_bytes(thread const& by, mbarrier& counter, std::int64_t change) {
  counter.bytes += change;
  if (counter.bytes >= mbarrier_limit || counter.bytes <= -mbarrier_limit)
    fail(by, "a barrier counts to " + std::to_string(counter.bytes) + " bytes, which is too far");
}

/// One arrival, which says that copies will bring so many bytes more in this phase.
inline void arrive_at(std::uint64_t* at, unsigned bytes) {
  mbarrier& counter = find_mbarrier(at);
  if (counter.missing == 0)
    fail(block::running.self(), "it arrives at a barrier whose " + std::to_string(counter.arrivals) +
                                    " arrivals have come, but " + std::to_string(counter.bytes) + " bytes have not");
  change_bytes(block::running.self(), counter, bytes);
  --counter.missing;
  complete_phase(counter);
}

inline void wait_for_phase(std::uint64_t* at, unsigned parity) {
  mbarrier const& counter = find_mbarrier(at);
  thread& me = block::running.self();
  if (parity > 1) fail(me, "it waits for the phase of parity " + std::to_string(parity));
  if ((counter.phase & 1) != parity) return;
  me.awaited = &counter;
  me.parity = parity;
  block::running.wait(waits::for_phase);
}

/// Which chunks of 16 bytes of dynamic shared memory threads have filled by cp.async and not published to the async proxy.
class unpublished_chunks {
 public:
  static unpublished_chunks& of_block() {
    static unpublished_chunks all;
    block const& running = block::running;
    if (all.block_ != running.number()) {
      all.block_ = running.number();
      all.chunks_.assign(running.launch().shared_bytes / 16, {});
      std::fill_n(all.published_, running.threads(), 0u);
    }
    return all;
  }
  void add(void const* chunk) {
    unsigned const writer = block::running.self().number;
    if (written* const found = find(chunk)) *found = {true, writer, published_[writer]};
  }
  /// What the running thread has filled until now.
  void publish() { ++published_[block::running.self().number]; }
  void overwrite(std::byte const* first, std::byte const* last) {
    for (; first < last; first += 16)
      if (written* const found = find(first)) *found = {};
  }
  /// Who filled it, if that thread has not published it since.
  thread const* writer(void const* chunk) {
    written const* const found = find(chunk);
    bool const open = found != nullptr && found->by_thread && published_[found->writer] == found->published;
    return open ? &block::running.thread_of(found->writer) : nullptr;
  }

 private:
  struct written {
    bool by_thread = false;
    unsigned writer = 0, published = 0;  // how often the writer had published before
  };
  std::uint64_t block_ = 0;
  std::vector<written> chunks_;
  unsigned published_[block_limit];

  written* find(void const* chunk) {
    auto const offset = static_cast<std::byte const*>(chunk) - block::running.shared();
    bool const inside = offset >= 0 && static_cast<std::size_t>(offset) / 16 < chunks_.size();
    return inside ? &chunks_[static_cast<std::size_t>(offset) / 16] : nullptr;
  }
};

/// Whether the async proxy may read a chunk of shared memory.
inline void check_async_read(std::byte const* chunk) {
  block& b = block::running;
  if (thread const* const writer = unpublished_chunks::of_block().writer(chunk))
    fail(b.self(), "it multiplies what thread " + text(writer->index) + " has copied and not published");
  for (arrival const& copy : b.arriving)
    if (chunk >= copy.first && chunk < copy.last) fail(b.self(), "it multiplies what a copy has not brought yet");
}

}  // namespace cuda_on_cpu
