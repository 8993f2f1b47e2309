// SPDX-License-Identifier: Apache-2.0
// What the threads of a warp or block do together, and atomics. `warp_together` is what all warp functions are made of.
#pragma once

#include <concepts>

#include "block.hpp"

namespace cuda_on_cpu {

template <class T, class F> inline constexpr char operation{};

/// The lanes named in `mask` meet; the last one calls combine(T* const (&lanes)[32]) once for all, where lanes[i] is
/// the `mine` of lane i, null outside the mask. Whatever combine writes there, the lanes find in `mine`.
template <class T, class F> void warp_together(unsigned mask, T& mine, F const& combine) {
  block& b = block::running;
  thread& me = b.self();
  warp& w = b.warp_of(me);
  if ((mask >> me.lane & 1) == 0)
    fail(me, "it calls a warp function whose lanes " + hexadecimal(mask) + " leave out its own");
  if ((mask & ~w.lanes) != 0)
    fail(me,
         "it calls a warp function of lanes " + hexadecimal(mask) + ", but its warp has only " + hexadecimal(w.lanes));
  me.mask = mask;
  me.operation = &operation<T, F>;
  me.operand = const_cast<void*>(static_cast<void const*>(&mine));
  w.waiting |= 1u << me.lane;

  bool complete = (w.waiting & mask) == mask;
  T* lanes[32] = {};
  for (int i = 0; complete && i < 32; ++i) {
    if ((mask >> i & 1) == 0) continue;
    thread const& other = b.in_warp_of(me, i);
    if (other.mask != mask)
      complete = false;
    else if (other.operation != me.operation)
      fail(me, "thread " + text(other.index) + " meets it in another warp function");
    lanes[i] = static_cast<T*>(other.operand);
  }
  if (!complete) return b.wait(waits::for_warp);
  combine(lanes);
  w.waiting &= ~mask;
  if (mask != 1u << me.lane) b.wake(w, mask & ~(1u << me.lane));
}

/// all[i] is what lane i of `mask` brought; the others are left as they were.
template <class T> void warp_exchange(unsigned mask, T const& mine, T (&all)[32]) {
  struct {
    T const* brought;
    T* all;
  } ends{&mine, all};
  warp_together(mask, ends, [](auto const& lanes) {
    for (auto* to : lanes)
      for (int i = 0; to != nullptr && i < 32; ++i)
        if (lanes[i] != nullptr) to->all[i] = *lanes[i]->brought;
  });
}

template <class T>
concept word = std::is_arithmetic_v<T> &&(sizeof(T) == 4 || sizeof(T) == 8);

/// Each lane gets the value of lane `source`, its own if that is negative.
template <word T> T shuffle(unsigned mask, T value, int source) {
  struct {
    T value;
    int source;
  } mine{value, source};
  warp_together(mask, mine, [](auto const& lanes) {
    T values[32] = {};
    for (int i = 0; i < 32; ++i)
      if (lanes[i] != nullptr) values[i] = lanes[i]->value;
    for (int i = 0; i < 32; ++i) {
      if (lanes[i] == nullptr || lanes[i]->source < 0) continue;
      if (lanes[lanes[i]->source] == nullptr)
        fail(block::running.in_warp_of(block::running.self(), i),
             "it shuffles from lane " + std::to_string(lanes[i]->source) + ", which the mask leaves out");
      lanes[i]->value = values[lanes[i]->source];
    }
  });
  return mine.value;
}

/// The lanes of this one's segment: [first, first + width).
inline int segment(int width) {
  thread const& me = block::running.self();
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail(me, "it shuffles among " + std::to_string(width) + " lanes, which is no power of two up to 32");
  return static_cast<int>(me.lane) & ~(width - 1);
}

/// fold(a, b) over the lanes of the mask, in lane order; all of them get the result.
template <class T, class F> T reduce(unsigned mask, T value, F const& fold) {
  warp_together(mask, value, [&fold](auto const& lanes) {
    T* total = nullptr;
    for (T* lane : lanes) {
      if (lane != nullptr && total != nullptr) *total = fold(*total, *lane);
      if (total == nullptr) total = lane;
    }
    for (T* lane : lanes)
      if (lane != nullptr) *lane = *total;
  });
  return value;
}

template <class T, class F> T exchange_at(T* address, F const& change) {
  T const old = *address;
  *address = change(old);
  return old;
}

inline constexpr char barrier_kinds[3] = {};

}  // namespace cuda_on_cpu

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::segment(width) + (lane & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  int const source = static_cast<int>(cuda_on_cpu::block::running.self().lane) ^ lanes;
  return cuda_on_cpu::shuffle(mask, value, source < cuda_on_cpu::segment(width) + width ? source : -1);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  int const source = static_cast<int>(cuda_on_cpu::block::running.self().lane) - static_cast<int>(lanes);
  return cuda_on_cpu::shuffle(mask, value, source >= cuda_on_cpu::segment(width) ? source : -1);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  int const source = static_cast<int>(cuda_on_cpu::block::running.self().lane) + static_cast<int>(lanes);
  return cuda_on_cpu::shuffle(mask, value, source < cuda_on_cpu::segment(width) + width ? source : -1);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  auto const own = static_cast<unsigned>(predicate != 0) << cuda_on_cpu::block::running.self().lane;
  return cuda_on_cpu::reduce(mask, own, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <cuda_on_cpu::word T> unsigned __match_any_sync(unsigned mask, T value) {
  struct {
    T value;
    unsigned same;
  } mine{value, 0};
  cuda_on_cpu::warp_together(mask, mine, [](auto const& lanes) {
    for (auto* lane : lanes)
      for (int i = 0; lane != nullptr && i < 32; ++i)
        if (lanes[i] != nullptr && std::memcmp(&lanes[i]->value, &lane->value, sizeof(T)) == 0) lane->same |= 1u << i;
  });
  return mine.same;
}

#define CUDA_ON_CPU_REDUCE(type, name, fold)                                              \
  inline type __reduce_##name##_sync(unsigned mask, type value) {                         \
    return cuda_on_cpu::reduce(mask, value, [](type a, type b) -> type { return fold; }); \
  }
CUDA_ON_CPU_REDUCE(unsigned, add, a + b)
CUDA_ON_CPU_REDUCE(unsigned, min, a < b ? a : b)
CUDA_ON_CPU_REDUCE(unsigned, max, a > b ? a : b)
CUDA_ON_CPU_REDUCE(unsigned, and, a& b)
CUDA_ON_CPU_REDUCE(unsigned, or, a | b)
CUDA_ON_CPU_REDUCE(unsigned, xor, a ^ b)
CUDA_ON_CPU_REDUCE(int, add, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
CUDA_ON_CPU_REDUCE(int, min, a < b ? a : b)
CUDA_ON_CPU_REDUCE(int, max, a > b ? a : b)
#undef CUDA_ON_CPU_REDUCE

inline void __syncwarp(unsigned mask = ~0u) {
  char nothing = 0;
  cuda_on_cpu::warp_together(mask, nothing, [](auto const&) {});
}

inline void __syncthreads() { cuda_on_cpu::block::running.barrier(cuda_on_cpu::barrier_kinds, 0); }
inline int __syncthreads_count(int predicate) {
  return cuda_on_cpu::block::running.barrier(cuda_on_cpu::barrier_kinds + 1, predicate != 0);
}
inline int __syncthreads_or(int predicate) {
  return cuda_on_cpu::block::running.barrier(cuda_on_cpu::barrier_kinds + 2, predicate != 0) != 0;
}

[[noreturn]] inline void __trap() { cuda_on_cpu::fail(cuda_on_cpu::block::running.self(), "it calls __trap()"); }

// For the types that CUDA has them for; none for floating-point numbers, whose sums would depend on the order.
#define CUDA_ON_CPU_ATOMIC(type, name, change)                                                         \
  inline type atomic##name(type* address, type value) {                                                \
    return cuda_on_cpu::exchange_at(address, [value](type old) { return static_cast<type>(change); }); \
  }
#define CUDA_ON_CPU_ATOMICS(type)                          \
  CUDA_ON_CPU_ATOMIC(type, Min, old < value ? old : value) \
  CUDA_ON_CPU_ATOMIC(type, Max, old > value ? old : value) \
  CUDA_ON_CPU_ATOMIC(type, And, old& value)                \
  CUDA_ON_CPU_ATOMIC(type, Or, old | value)
CUDA_ON_CPU_ATOMICS(int)
CUDA_ON_CPU_ATOMICS(unsigned)
CUDA_ON_CPU_ATOMICS(unsigned long long)
CUDA_ON_CPU_ATOMIC(long long, Min, old < value ? old : value)
CUDA_ON_CPU_ATOMIC(long long, Max, old > value ? old : value)
CUDA_ON_CPU_ATOMIC(int, Add, static_cast<unsigned>(old) + static_cast<unsigned>(value))
CUDA_ON_CPU_ATOMIC(unsigned, Add, old + value)
CUDA_ON_CPU_ATOMIC(unsigned long long, Add, old + value)
CUDA_ON_CPU_ATOMIC(int, Exch, (static_cast<void>(old), value))
CUDA_ON_CPU_ATOMIC(unsigned, Exch, (static_cast<void>(old), value))
CUDA_ON_CPU_ATOMIC(unsigned long long, Exch, (static_cast<void>(old), value))
#undef CUDA_ON_CPU_ATOMICS
#undef CUDA_ON_CPU_ATOMIC

#define CUDA_ON_CPU_CAS(type)                                                                          \
  inline type atomicCAS(type* address, type expected, type value) {                                    \
    return cuda_on_cpu::exchange_at(address, [&](type old) { return old == expected ? value : old; }); \
  }
CUDA_ON_CPU_CAS(int)
CUDA_ON_CPU_CAS(unsigned)
CUDA_ON_CPU_CAS(unsigned long long)
#undef CUDA_ON_CPU_CAS
