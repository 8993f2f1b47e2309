// SPDX-License-Identifier: Apache-2.0
// A block of CUDA threads on one CPU thread. Each CUDA thread is a fiber: it runs until it has to wait, then picks the
// next one that can go on and switches to it. The last thread to arrive at a barrier or at a warp function completes it
// for all and goes on itself. Who is picked is drawn from the seed: a lane of the warp that runs, or of another warp.
// What happens by itself, as a copy that arrives, happens late: when nobody can go on, or when the seed says so.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "language.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_CPU_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_ASAN 1
#endif
#if defined(CUDA_ON_CPU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) static_cast<void>(begin)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) static_cast<void>(begin)
#endif

inline constexpr int warpSize = 32;
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_cpu {

inline constexpr unsigned block_limit = 1024;
inline constexpr std::size_t stack_bytes = 256 << 10;  // address space; a page is memory once it is touched
inline constexpr std::size_t guard_bytes = 4 << 10;

struct launch_record {
  void const* kernel;
  dim3 grid, block;
  std::size_t shared_bytes;
  std::function<void()> body;  // what one thread does
};

/// xorshift64; seed 0 is the natural order: always zero.
struct random_bits {
  std::uint64_t state = 0;
  explicit random_bits(std::uint64_t seed = 0, std::uint64_t stream = 0)
      : state(seed == 0 ? 0 : (seed * 0x9e3779b97f4a7c15u ^ (stream + 1) * 0xd1342543de82ef95u) | 1) {
    for (int i = 0; i < 8; ++i) (*this)();
  }
  unsigned operator()() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<unsigned>(state >> 32);
  }
};

/// A stack to switch to. The host's own is one too.
struct context {
  void* top = nullptr;  // while it waits
  // What the address sanitizer wants to know.
  void* fake_stack = nullptr;
  void const* bottom = nullptr;
  std::size_t size = 0;
};

/// Keeps what a function must keep for its caller, and goes on where `to` was left. A jump, not a return: the processor
/// predicts it.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from: rdi*/, void* /*to: rsi*/) {
  asm volatile(
      "popq %rcx\n\t"
      "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\tpushq %rcx\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %rcx\n\tpopq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\t"
      "jmpq *%rcx");
}

enum class waits { no, for_warp, for_block, for_phase, ended };

struct mbarrier;

struct thread : context {
  uint3 index;
  unsigned number, lane;
  waits state;
  unsigned mask;            // waits::for_warp: the lanes that must come,
  void const* operation;    // the function they must call,
  void* operand;            // and what this one brings
  mbarrier const* awaited;  // waits::for_phase: until that is no longer in the phase of this parity
  unsigned parity;
};

/// A barrier of shared memory that counts arrivals, and bytes that copies bring, phase by phase.
struct mbarrier {
  unsigned arrivals;       // in a phase
  unsigned missing;        // of this phase
  std::int64_t bytes = 0;  // that have still to come before the phase is complete; negative if they came first
  unsigned phase = 0;
  thread const* maker;
  bool published = false;
  std::uint64_t made = 0;    // how many barriers of the block were before
  std::ptrdiff_t place = 0;  // from the start of dynamic shared memory
};

/// What will have happened to the shared memory [first, last) some time after a thread asked for it.
struct arrival {
  thread const* by;
  std::byte const *first, *last;
  std::function<void()> happen;
};

struct warp {
  unsigned lanes = 0;    // that exist
  unsigned ready = 0;    // can go on, and do not run
  unsigned waiting = 0;  // in a warp function
};

[[noreturn]] void fail(thread const& where, std::string const& sentence);

template <class V> std::string text(V const& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

inline std::string hexadecimal(unsigned v) {
  char digits[11];
  std::snprintf(digits, sizeof digits, "0x%08x", v);
  return digits;
}

/// The name of a kernel, where the binary exports its symbols and the kernel is in no anonymous namespace.
inline std::string name_of(void const* kernel) {
  Dl_info found{};
  if (dladdr(kernel, &found) == 0 || found.dli_saddr != kernel || found.dli_sname == nullptr) return "without a name";
  std::unique_ptr<char, void (*)(void*)> const name(abi::__cxa_demangle(found.dli_sname, nullptr, nullptr, nullptr),
                                                    std::free);
  return name ? name.get() : found.dli_sname;
}

class block {
 public:
  static block running;  // the only one

  thread& self() const { return *self_; }
  warp& warp_of(thread const& t) { return warps_[t.number / 32]; }
  thread& in_warp_of(thread const& t, int lane) { return threads_[(t.number & ~31u) + static_cast<unsigned>(lane)]; }
  launch_record const& launch() const { return *launch_; }
  std::byte* shared() const { return shared_; }
  std::uint64_t number() const { return number_; }  // of this block among all that ever ran
  std::uint64_t barriers() const { return barriers_; }
  unsigned threads() const { return count_; }
  thread const& thread_of(unsigned number) const { return threads_[number]; }

  /// The 32-bit address of what lies in dynamic shared memory, as the device has it.
  unsigned shared_address(void const* pointer) const {
    auto const at = static_cast<std::byte const*>(pointer);
    if (at < shared_ || at > shared_ + launch_->shared_bytes)
      fail(*self_, "it asks for the shared address of what is not in the dynamic shared memory");
    return static_cast<unsigned>(at - window_.get()) + kept_by_device;
  }
  /// Where the bytes at such an address are; null if not all of them are in dynamic shared memory.
  std::byte* shared_at(unsigned address, unsigned bytes) const {
    auto const offset = std::int64_t{address} - kept_by_device - (shared_ - window_.get());
    bool const inside = offset >= 0 && offset + bytes <= static_cast<std::int64_t>(launch_->shared_bytes);
    return inside ? shared_ + offset : nullptr;
  }

  std::map<std::uint64_t*, mbarrier> mbarriers;
  std::vector<arrival> arriving;
  std::vector<std::function<void()>> at_end;  // checks, when all threads of the block have ended

  /// Wakes who waits for a phase that is complete.
  void wake_waiters(mbarrier const& of) {
    for (unsigned i = 0; i < count_; ++i) {
      thread& t = threads_[i];
      if (t.awaited != &of || t.parity == (of.phase & 1)) continue;
      t.awaited = nullptr;
      wake(warp_of(t), 1u << t.lane);
    }
  }

  /// All blocks of a grid, one after another in an order drawn from the seed.
  void run_grid(launch_record const& launch, std::uint64_t seed, std::uint64_t number) {
    if (stacks_ == nullptr) allocate_stacks();
    host_ = {};
    launch_ = &launch;
    random_ = random_bits(seed, number);
    unsigned const drawn = random_();
    allocate_shared(128 * (1 + drawn / 8 % 7));
    gridDim = launch.grid;
    blockDim = launch.block;
    auto const blocks = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z;
    std::uint64_t const first = drawn % blocks;
    std::uint64_t const step = seed == 0 ? 1 : step_through(blocks);
    for (std::uint64_t i = 0, at = first; i < blocks; ++i, at = (at + step) % blocks) {
      auto const yz = at / gridDim.x;
      blockIdx = {static_cast<unsigned>(at % gridDim.x), static_cast<unsigned>(yz % gridDim.y),
                  static_cast<unsigned>(yz / gridDim.y)};
      run();
    }
    window_.reset();
  }

  /// Wakes the lanes of a warp function that has been completed.
  void wake(warp& w, unsigned lanes) {
    w.ready |= lanes;
    ready_warps_ |= 1u << (&w - warps_);
  }

  /// Stops the running thread until it is woken.
  void wait(waits reason) {
    self_->state = reason;
    go_on(*self_);
    // Here the thread has been picked again, and picking has made it the running one.
  }

  /// __syncthreads and its kin: the sum over the block of what each thread brings. `kind` tells them apart.
  int barrier(void const* kind, int brought) {
    thread& me = *self_;
    me.operation = kind;
    barrier_sum_ += brought;
    if (++arrived_ < count_) {
      wait(waits::for_block);
      return barrier_result_;
    }
    for (unsigned i = 0; i < count_; ++i)
      if (threads_[i].operation != kind)
        fail(me, "thread " + text(threads_[i].index) + " is at another kind of barrier");
    barrier_result_ = barrier_sum_;
    barrier_sum_ = 0;
    arrived_ = 0;
    ++barriers_;
    for (unsigned w = 0; w * 32 < count_; ++w) wake(warps_[w], warps_[w].lanes);
    warp_of(me).ready &= ~(1u << me.lane);
    if (warp_of(me).ready == 0) ready_warps_ &= ~(1u << me.number / 32);
    return barrier_result_;
  }

 private:
  launch_record const* launch_ = nullptr;
  thread* self_ = nullptr;
  unsigned count_ = 0, ended_ = 0, arrived_ = 0;  // threads of the block
  unsigned ready_warps_ = 0, at_ = 0;             // at_: the warp that runs
  unsigned stay_ = 0;                             // how likely the next thread is one of the same warp
  unsigned late_ = 0;                             // how likely nothing arrives by itself at a switch
  std::uint64_t number_ = 0, barriers_ = 0;
  int barrier_sum_ = 0, barrier_result_ = 0;
  random_bits random_;
  context host_;
  warp warps_[block_limit / 32];
  thread threads_[block_limit];
  std::byte* stacks_ = nullptr;
  struct freed {
    void operator()(std::byte* memory) const { ::operator delete(memory, window_alignment); }
  };
  static constexpr std::align_val_t window_alignment{1024};
  static constexpr unsigned kept_by_device = 1024;  // shared memory in front of a block's
  std::unique_ptr<std::byte, freed> window_;  // ends where shared memory does, so the address sanitizer sees an overrun
  std::byte* shared_ = nullptr;

  /// At a multiple of 128 bytes that is none of 256 ... 1024: a device promises no more.
  void allocate_shared(std::size_t offset) {
    window_.reset(static_cast<std::byte*>(::operator new(offset + launch_->shared_bytes, window_alignment)));
    ASAN_POISON_MEMORY_REGION(window_.get(), offset);
    shared_ = window_.get() + offset;
  }

  void allocate_stacks() {
    auto const bytes = block_limit * stack_bytes;
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::perror("cuda_on_cpu: no memory for stacks"), std::abort();
    stacks_ = static_cast<std::byte*>(memory);
    for (unsigned i = 0; i < block_limit; ++i) mprotect(stacks_ + i * stack_bytes, guard_bytes, PROT_NONE);
  }

  /// A step that meets every block once.
  std::uint64_t step_through(std::uint64_t blocks) {
    for (;;) {
      std::uint64_t const step = 1 + random_() % blocks;
      std::uint64_t a = blocks, b = step;
      while (b != 0) a = std::exchange(b, a % b);
      if (a == 1) return step;
    }
  }

  void run() {
    count_ = blockDim.x * blockDim.y * blockDim.z;
    ended_ = arrived_ = ready_warps_ = at_ = 0;
    constexpr unsigned likely[] = {~0u, 63, 0};  // until the warp stalls, for some lanes, never
    unsigned const drawn = random_();
    stay_ = likely[drawn % 3];
    late_ = likely[drawn / 3 % 3];
    ++number_;
    barriers_ = 0;
    std::memset(shared(), 0xff, launch_->shared_bytes);
    for (unsigned i = 0; i < count_; ++i) prepare(i);
    for (unsigned w = 0; w * 32 < count_; ++w) {
      unsigned const lanes = count_ - w * 32 < 32 ? (1u << (count_ - w * 32)) - 1 : ~0u;
      warps_[w] = {lanes, 0, 0};
      wake(warps_[w], lanes);
    }
    go_on(host_);
    if (!arriving.empty()) fail(*arriving.front().by, "its block ended before a copy that it asked for had arrived");
    for (auto const& [at, counter] : mbarriers)
      if (counter.bytes != 0) fail(*counter.maker, "its block ended without " + missing(counter));
    for (auto const& check : at_end) check();
    mbarriers.clear();
    at_end.clear();
  }

  void prepare(unsigned i) {
    thread& t = threads_[i];
    t.number = i;
    t.lane = i % 32;
    t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    t.state = waits::no;
    t.awaited = nullptr;
    // At different places in their page and pages: else all stacks would share a few sets of the caches.
    std::byte* const end = stacks_ + (i + 1) * stack_bytes - i % 16 * 256 - i / 16 % 16 * 4096;
    ASAN_UNPOISON_MEMORY_REGION(end - 4096, 4096);  // what the thread before left here when it ended
    void** const frame = reinterpret_cast<void**>(end) - 8;
    frame[0] = reinterpret_cast<void*>(&enter);
    for (int k = 1; k < 8; ++k) frame[k] = nullptr;  // six registers, and the caller that there is not
    t.top = frame;
    t.fake_stack = nullptr;
    t.bottom = stacks_ + i * stack_bytes + guard_bytes;
    t.size = stack_bytes - guard_bytes;
  }

  /// Where a fiber begins.
  static void enter() noexcept {
    running.arrived_at(*running.self_);
    running.launch_->body();
    running.self_->state = waits::ended;
    ++running.ended_;
    running.go_on(*running.self_, true);
    __builtin_unreachable();
  }

  /// Leaves `from` for a thread that can go on, or for the host when all have ended.
  void go_on(context& from, bool ends = false) {
    if (!arriving.empty() && ended_ != count_) let_arrive();
    if (ready_warps_ != 0) {
      self_ = &pick();
      threadIdx = self_->index;
      if (self_ == &from) return;  // what has arrived woke it
      leave(from, *self_, ends);
    } else if (ended_ == count_) {
      leave(from, host_, ends);
    } else {
      report_deadlock();
    }
  }

  /// At least as much as somebody needs to go on.
  void let_arrive() {
    if (ready_warps_ != 0 && (random_.state == 0 || (random_() >> 16 & late_) != 0)) return;
    do {
      std::size_t const drawn = random_() % arriving.size();
      std::function<void()> const happen = std::move(arriving[drawn].happen);
      arriving.erase(arriving.begin() + static_cast<std::ptrdiff_t>(drawn));
      happen();
    } while (ready_warps_ == 0 && !arriving.empty());
  }

  thread& pick() {
    unsigned const bits = random_();
    if ((ready_warps_ >> at_ & 1) == 0 || (random_.state != 0 && (bits >> 16 & stay_) == 0))
      at_ = first_from(ready_warps_, bits >> 8 & 31);
    warp& w = warps_[at_];
    unsigned const lane = first_from(w.ready, bits & 31);
    w.ready &= ~(1u << lane);
    if (w.ready == 0) ready_warps_ &= ~(1u << at_);
    return threads_[at_ * 32 + lane];
  }

  static unsigned first_from(unsigned set, unsigned start) {
    return (static_cast<unsigned>(std::countr_zero(std::rotr(set, static_cast<int>(start)))) + start) & 31;
  }

  void leave(context& from, context& to, [[maybe_unused]] bool ends) {
#if defined(CUDA_ON_CPU_ASAN)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
    switch_stacks(&from.top, to.top);
    arrived_at(from);
  }

  void arrived_at([[maybe_unused]] context& here) {
#if defined(CUDA_ON_CPU_ASAN)
    void const* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &size);
    if (host_.bottom == nullptr) host_.bottom = bottom, host_.size = size;  // the first switch came from there
#endif
  }

  [[noreturn]] void report_deadlock() {
    thread const* const end = threads_ + count_;
    thread const* stuck = end;
    for (waits reason : {waits::for_warp, waits::for_block, waits::for_phase})
      if (stuck == end)
        stuck = std::find_if(std::as_const(threads_), end, [&](thread const& t) { return t.state == reason; });
    if (stuck->state == waits::for_phase) fail(*stuck, "deadlock: it waits " + doing(*stuck));
    thread const* missed = threads_;
    for (; missed < end; ++missed) {
      bool const named = missed->number / 32 == stuck->number / 32 && (stuck->mask >> missed->lane & 1) != 0;
      if (stuck->state == waits::for_block ? missed->state != waits::for_block
                                           : named && (missed->state != waits::for_warp || missed->mask != stuck->mask))
        break;
    }
    fail(*stuck, "deadlock: it waits " + doing(*stuck) + " for thread " + text(missed->index) + ", which " +
                     (missed->state == waits::ended ? "has ended" : "waits " + doing(*missed)));
  }

  /// What its phase lacks.
  static std::string missing(mbarrier const& of) {
    return std::to_string(of.missing) + " arrivals and " + std::to_string(of.bytes) + " bytes of phase " +
           std::to_string(of.phase) + " of the barrier at byte " + std::to_string(of.place) + " of shared memory";
  }
  static std::string doing(thread const& t) {
    if (t.state == waits::for_phase) return "for " + missing(*t.awaited);
    return t.state == waits::for_block ? "at the barrier of the block"
                                       : "in a warp function of lanes " + hexadecimal(t.mask);
  }
};

inline block block::running;

/// Ends the process with one sentence about a thread of the running kernel.
[[gnu::noinline]] inline void fail(thread const& where, std::string const& sentence) {
  std::fprintf(stderr, "cuda_on_cpu: kernel %s, block %s, thread %s: %s.\n",
               name_of(block::running.launch().kernel).c_str(), text(blockIdx).c_str(), text(where.index).c_str(),
               sentence.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace cuda_on_cpu
