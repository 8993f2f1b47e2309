// SPDX-License-Identifier: Apache-2.0
// The device: its memory, its streams, and what tests ask of it. Work is queued when the host calls and runs when the
// host waits for it, only as much as it waits for; so what nobody ordered does run in the wrong order. Device memory is
// one region that no one can read or write except while work runs.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "block.hpp"

struct CUstream_st;

namespace cuda_on_cpu {

/// What a test may change; reset() restores it.
struct settings {
  int devices = 1;
  int compute_major = 9, compute_minor = 0;
  int multiprocessors = 4;
  unsigned driver_version = 13000;
  std::size_t shared_limit = 232448;  // dynamic shared bytes of one block, with cudaFuncSetAttribute
  int kernel_threads = 1024;          // most threads of a block, as kernels say themselves
  int kernel_capability = 90;         // for what kernels were compiled, as they say themselves
  std::size_t device_bytes = std::size_t{4} << 30;
  std::uint64_t seed = default_seed();  // of the order of lanes, warps and blocks; 0 is the natural order
  // Errors to come, as cudaError_t:
  int next_launch = 0;  // what the next launch returns
  int next_kernel = 0;  // what every call returns once the next kernel has run
  int sticky = 0;       // what every call returns

  /// CUDA_ON_CPU_SEED of the environment, else 1.
  static std::uint64_t default_seed() {
    char const* const text = std::getenv("CUDA_ON_CPU_SEED");
    return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
  }
};

/// What has happened; reset() sets it to zero.
struct counts {
  std::int64_t launches = 0;          // kernels that have run
  std::int64_t synchronisations = 0;  // calls that made the host wait
  std::int64_t allocations = 0;       // of device memory
  std::size_t bytes = 0;              // of device memory now allocated; not reset
  std::size_t peak = 0;               // most of them
  std::map<void const*, std::int64_t> by_kernel;
};

inline settings knobs;
inline counts counters;

inline void reset() {
  knobs = {};
  std::size_t const bytes = counters.bytes;
  counters = {};
  counters.bytes = counters.peak = bytes;
}

/// How often kernels have run whose name contains `part`.
inline std::int64_t launches_of(std::string const& part) {
  std::int64_t sum = 0;
  for (auto const& [kernel, times] : counters.by_kernel)
    if (name_of(kernel).find(part) != std::string::npos) sum += times;
  return sum;
}

/// The dynamic shared memory of the block: exactly as many bytes as the launch asked, 0xff at its start.
inline std::byte* dynamic_shared() { return block::running.shared(); }

class device_memory {
 public:
  struct allocation {
    std::size_t bytes;
    int device;
  };

  /// Null where it does not fit. 256-byte aligned, filled with 0xff: NaN as float, bf16, fp16 and double.
  std::byte* allocate(std::size_t bytes, int device) {
    if (bytes > knobs.device_bytes || counters.bytes > knobs.device_bytes - bytes) return nullptr;
    if (base_ == nullptr) reserve();
    std::byte* at = base_ + gap;
    for (auto const& [begin, taken] : blocks_) {
      if (begin - at >= static_cast<std::ptrdiff_t>(span(bytes))) break;
      at = begin + span(taken.bytes);
    }
    if (at + span(bytes) > base_ + reserved) return nullptr;
    blocks_[at] = {bytes, device};
    if (at + span(bytes) > end_) grow(at + span(bytes));
    ASAN_UNPOISON_MEMORY_REGION(at, bytes);
    fill(at, bytes);
    counters.bytes += bytes;
    counters.peak = std::max(counters.peak, counters.bytes);
    ++counters.allocations;
    return at;
  }

  bool free(void const* pointer) {
    auto const found = blocks_.find(const_cast<std::byte*>(static_cast<std::byte const*>(pointer)));
    if (found == blocks_.end()) return false;
    fill(found->first, found->second.bytes);
    ASAN_POISON_MEMORY_REGION(found->first, found->second.bytes);
    counters.bytes -= found->second.bytes;
    blocks_.erase(found);
    return true;
  }

  bool contains(void const* p) const { return base_ != nullptr && p >= base_ && p < base_ + reserved; }

  /// The allocation that holds [p, p + bytes), or null.
  allocation const* find(void const* p, std::size_t bytes = 0) const {
    auto const at = static_cast<std::byte const*>(p);
    auto next = blocks_.upper_bound(const_cast<std::byte*>(at));
    if (next == blocks_.begin()) return nullptr;
    auto const& [begin, taken] = *--next;
    auto const offset = static_cast<std::size_t>(at - begin);
    return offset <= taken.bytes && bytes <= taken.bytes - offset ? &taken : nullptr;
  }

  /// Readable and writable while one of these lives.
  struct opened {
    device_memory& memory;
    explicit opened(device_memory& m) : memory(m) {
      if (memory.open_++ == 0) memory.protect(PROT_READ | PROT_WRITE);
    }
    ~opened() {
      if (--memory.open_ == 0) memory.protect(PROT_NONE);
    }
    opened(opened const&) = delete;
  };

 private:
  static constexpr std::size_t reserved = std::size_t{1} << 36;  // addresses
  static constexpr std::size_t gap = 256;                        // between allocations, at least
  static constexpr std::size_t huge_page = std::size_t{2} << 20;

  std::byte* base_ = nullptr;
  std::byte* end_ = nullptr;  // of what has ever been used
  int open_ = 0;
  std::map<std::byte*, allocation> blocks_;

  static constexpr std::size_t span(std::size_t bytes) { return (bytes + gap - 1) / gap * gap + gap; }

  void reserve() {
    auto const bytes = reserved + huge_page;
    void* const memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::perror("cuda_on_cpu: no addresses for device memory"), std::abort();
    auto const odd = reinterpret_cast<std::uintptr_t>(memory) % huge_page;
    base_ = end_ = static_cast<std::byte*>(memory) + (huge_page - odd);
    madvise(base_, reserved, MADV_HUGEPAGE);  // far fewer pages to protect each time
  }

  void grow(std::byte const* needed) {
    auto const bytes = (static_cast<std::size_t>(needed - end_) + huge_page - 1) / huge_page * huge_page;
    ASAN_POISON_MEMORY_REGION(end_, bytes);
    end_ += bytes;
    if (open_ > 0) protect(PROT_READ | PROT_WRITE);
  }

  void protect(int access) {
    if (base_ != nullptr && end_ != base_) mprotect(base_, static_cast<std::size_t>(end_ - base_), access);
  }

  void fill(std::byte* at, std::size_t bytes) {
    opened const access(*this);
    std::memset(at, 0xff, bytes);
  }
};

/// A place in a stream: when that many pieces of its work are done.
struct moment {
  CUstream_st* stream = nullptr;
  std::uint64_t number = 0;
};

struct work {
  std::function<void()> run;
  std::vector<moment> after;
};

using graph_nodes = std::vector<std::function<void()>>;

struct capture_record {
  graph_nodes nodes;
  int mode;
  std::thread::id thread;
  bool valid = true;
};

}  // namespace cuda_on_cpu

struct CUstream_st {
  bool blocking, alive = true;
  std::deque<cuda_on_cpu::work> queue{};
  std::uint64_t queued = 0, done = 0;
  std::shared_ptr<cuda_on_cpu::capture_record> capture{};
};

struct CUevent_st {
  bool timing, alive = true;
  cuda_on_cpu::moment recorded{};
  std::shared_ptr<cuda_on_cpu::capture_record> capture{};
  std::chrono::steady_clock::time_point time{};
};

namespace cuda_on_cpu {

class device {
 public:
  std::mutex mutex;  // held by every call, so one thread at a time is here
  device_memory memory;
  std::map<std::byte*, std::size_t> pinned;
  std::map<void const*, std::size_t> shared_limits;  // of kernels, where raised
  std::deque<CUevent_st> events;                     // and streams: kept, so that late users are recognised
  std::deque<CUstream_st> streams{CUstream_st{true}};

  CUstream_st& legacy() { return streams.front(); }
  CUstream_st* stream(CUstream_st* given) {  // null and cudaStreamLegacy are the same
    return reinterpret_cast<std::uintptr_t>(given) <= 1 ? &legacy() : given;
  }

  void enqueue(CUstream_st& s, std::function<void()> run, std::vector<moment> after = {}) {
    if (s.capture) return s.capture->nodes.push_back(std::move(run));
    for (CUstream_st& other : streams)  // the legacy stream and the blocking ones wait for each other
      if (s.blocking && other.blocking && (&s == &legacy()) != (&other == &legacy()) && other.done < other.queued)
        after.push_back({&other, other.queued});
    s.queue.push_back({std::move(run), std::move(after)});
    ++s.queued;
  }

  /// Does the work up to there, and what it has to wait for.
  void run_until(moment const& to) {
    if (to.stream == nullptr) return;
    device_memory::opened const access(memory);
    while (to.stream->done < to.number) {
      work const next = std::move(to.stream->queue.front());
      to.stream->queue.pop_front();
      for (moment const& earlier : next.after) run_until(earlier);
      next.run();
      ++to.stream->done;
    }
  }

  void run(CUstream_st& s) { run_until({&s, s.queued}); }
  void run_all() {
    for (CUstream_st& s : streams) run(s);
  }

  void run_kernel(launch_record const& launch) {
    ++counters.launches;
    ++counters.by_kernel[launch.kernel];
    block::running.run_grid(launch, knobs.seed, number_++);
    if (knobs.next_kernel != 0) knobs.sticky = std::exchange(knobs.next_kernel, 0);
  }

  bool is_pinned(void const* p) const {
    auto const next = pinned.upper_bound(const_cast<std::byte*>(static_cast<std::byte const*>(p)));
    return next != pinned.begin() &&
           static_cast<std::byte const*>(p) < std::prev(next)->first + std::prev(next)->second;
  }

 private:
  std::uint64_t number_ = 0;  // of the next launch: each one draws its own order
};

inline device the_device;

}  // namespace cuda_on_cpu
