// SPDX-License-Identifier: Apache-2.0
// What the threads of a warp or block do together, and atomics. `warp_together` is what all warp functions are made of.
#pragma once

#include <concepts>
#include <type_traits>

#include "block.hpp"

namespace cuda_on_cpu {

template <class T, class F> inline constexpr char operation{};

/// The lanes named in `mask` meet; the last one calls combine(T* const (&lanes)[32]) once for all, where lanes[i] is
/// the `mine` of lane i, null outside the mask. Whatever combine writes there, the lanes find in `mine`.
template <class T, class F> [[gnu::noinline]] void warp_together(unsigned mask, T& mine, F const& combine) {
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
template <word T> [[gnu::noinline]] T shuffle(unsigned mask, T value, int source) {
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
[[gnu::noinline]] inline int segment(int width) {
  thread const& me = block::running.self();
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail(me, "it shuffles among " + std::to_string(width) + " lanes, which is no power of two up to 32");
  return static_cast<int>(me.lane) & ~(width - 1);
}

/// fold(a, b) over the lanes of the mask, in lane order; all of them get the result.
template <class T, class F> [[gnu::noinline]] T reduce(unsigned mask, T value, F fold) {
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

template <class T, class... Ts>
concept one_of = (std::same_as<T, Ts> || ...);

/// Sums wrap, as on the device.
template <class T> T sum(T a, T b) {
  using bits = std::make_unsigned_t<T>;
  return static_cast<T>(static_cast<bits>(a) + static_cast<bits>(b));
}
template <class T> T least(T a, T b) { return b < a ? b : a; }
template <class T> T most(T a, T b) { return a < b ? b : a; }
template <class T> T replace(T* address, T value) { return std::exchange(*address, value); }

inline constexpr char barrier_kinds[3] = {};

namespace api {  // seen from everywhere

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return shuffle(mask, value, segment(width) + (lane & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  int const source = static_cast<int>(block::running.self().lane) ^ lanes;
  return shuffle(mask, value, source < segment(width) + width ? source : -1);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  int const source = static_cast<int>(block::running.self().lane) - static_cast<int>(lanes);
  return shuffle(mask, value, source >= segment(width) ? source : -1);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  int const source = static_cast<int>(block::running.self().lane) + static_cast<int>(lanes);
  return shuffle(mask, value, source < segment(width) + width ? source : -1);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  auto const own = static_cast<unsigned>(predicate != 0) << block::running.self().lane;
  return reduce(mask, own, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <word T> unsigned __match_any_sync(unsigned mask, T value) {
  struct {
    T value;
    unsigned same;
  } mine{value, 0};
  warp_together(mask, mine, [](auto const& lanes) {
    for (auto* lane : lanes)
      for (int i = 0; lane != nullptr && i < 32; ++i)
        if (lanes[i] != nullptr && std::memcmp(&lanes[i]->value, &lane->value, sizeof(T)) == 0) lane->same |= 1u << i;
  });
  return mine.same;
}

template <one_of<int, unsigned> T> T __reduce_add_sync(unsigned mask, T value) {
  return reduce(mask, value, [](T a, T b) { return sum(a, b); });
}
template <one_of<int, unsigned> T> T __reduce_min_sync(unsigned mask, T value) {
  return reduce(mask, value, [](T a, T b) { return least(a, b); });
}
template <one_of<int, unsigned> T> T __reduce_max_sync(unsigned mask, T value) {
  return reduce(mask, value, [](T a, T b) { return most(a, b); });
}

inline void __syncwarp(unsigned mask = ~0u) {
  char nothing = 0;
  warp_together(mask, nothing, [](auto const&) {});
}

inline void __syncthreads() { block::running.barrier(barrier_kinds, 0); }
inline int __syncthreads_count(int predicate) { return block::running.barrier(barrier_kinds + 1, predicate != 0); }
inline int __syncthreads_or(int predicate) { return block::running.barrier(barrier_kinds + 2, predicate != 0) != 0; }

[[noreturn]] inline void __trap() { fail(block::running.self(), "it calls __trap()"); }

// For the types that CUDA has them for; none for floating-point numbers, whose sums would depend on the order.
template <one_of<int, unsigned, unsigned long long> T> T atomicAdd(T* address, std::type_identity_t<T> value) {
  return replace(address, sum<T>(*address, value));
}
template <one_of<int, unsigned, long long, unsigned long long> T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return replace(address, least<T>(*address, value));
}
template <one_of<int, unsigned, long long, unsigned long long> T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return replace(address, most<T>(*address, value));
}
template <one_of<int, unsigned, unsigned long long> T> T atomicOr(T* address, std::type_identity_t<T> value) {
  return replace(address, *address | value);
}
template <one_of<int, unsigned, unsigned long long> T> T atomicExch(T* address, std::type_identity_t<T> value) {
  return replace(address, value);
}
template <one_of<int, unsigned, unsigned long long> T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return replace(address, *address == expected ? value : *address);
}

}  // namespace api
}  // namespace cuda_on_cpu

using namespace cuda_on_cpu::api;
