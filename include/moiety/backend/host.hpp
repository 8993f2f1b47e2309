// SPDX-License-Identifier: Apache-2.0
// The host back end: the CPU, its own threads, the caller's memory.
//
//   mo::context<> ctx{mo::host{.threads = 4, .memory = &resource}};
//
// threads: 0 asks for one a processor, bounded by MOIETY_NUM_THREADS or, where that is unset, OMP_NUM_THREADS.
// memory:  the hook that every block of the context comes from; null is the heap.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/backend.hpp>
#include <moiety/backend/thread_pool.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <utility>

namespace moiety::inline MOIETY_ABI {

struct host {
  int threads = 0;
  std::pmr::memory_resource* memory = nullptr;

  using engine = host_engine;
  template <class T> using matrix = moiety::matrix<T>;
  static constexpr non_finite default_non_finite = non_finite::reject;
};

/// A host back end at run time: its threads, their scratch memory, and the arena. Work is finished when a call returns.
class host_engine {
 public:
  /// Memory of each worker for packed operands and tiles.
  static constexpr std::int64_t scratch_bytes = std::int64_t{4} << 20;

  explicit host_engine(host const& options)
      : arena_(options.memory != nullptr ? *options.memory : *std::pmr::new_delete_resource()),
        pool_(thread_count(options.threads)),
        scratch_(pool_.threads() * scratch_bytes, arena_) {}

  int threads() const { return pool_.threads(); }
  arena& memory() { return arena_; }
  void synchronize() {}
  void check_memory(char const*, char const*, void const*) const {}

  /// Profilers of the host see functions as they are.
  struct range {
    explicit range(char const*) {}
  };

  std::span<std::byte> scratch(int worker) {
    return {static_cast<std::byte*>(scratch_.data()) + worker * scratch_bytes, static_cast<std::size_t>(scratch_bytes)};
  }

  /// Calls f(task, worker) once for every task in [0, tasks), see thread_pool.
  template <class Function> void parallel(std::int64_t tasks, Function&& f) {
    pool_.parallel(tasks, std::forward<Function>(f));
  }

  /// Calls f(first, last, worker) for blocks of at most `grain` that partition [0, count).
  template <class Function> void for_blocks(std::int64_t count, std::int64_t grain, Function&& f) {
    pool_.parallel((count + grain - 1) / grain, [&](std::int64_t block, int worker) {
      f(block * grain, std::min(count, (block + 1) * grain), worker);
    });
  }

 private:
  arena arena_;
  thread_pool pool_;
  buffer scratch_;
};
static_assert(backend<host>);

}  // namespace moiety
