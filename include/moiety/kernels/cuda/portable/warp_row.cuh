// SPDX-License-Identifier: Apache-2.0
// A row of at most 32 · N values over the lanes of a warp: value i stands in register i / 32 of lane i mod 32.
//
// It has the verbs of batch/row.hpp, their order of sums, and therefore the bits of the host: lane l adds the values
// l, l + 32, … in turn, then the lanes are folded in halves. All lanes of the warp call each verb together and get the same
// result. Like a span a row refers to its values, which are the caller's registers, so copies of a row are the same row.
// row[i] needs the same i in all lanes; it reads by a shuffle, and = and += are carried out by the lane of the value.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <cuda_runtime.h>

#include <concepts>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

inline constexpr unsigned all_lanes = 0xffffffffu;
inline constexpr int warp_lanes = 32;

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x % 32u); }

namespace gpu {

template <class T, int Count> using registers_of = moiety::detail::array_of<T, Count>;

/// A value and its index, of which the largest value and then the lowest index is sought.
template <std::floating_point S> struct indexed_value {
  static constexpr unsigned none = 0xffffffffu;  // the index where there is no value, which is then −∞
  S value = -moiety::detail::infinity<S>;
  unsigned index = none;
};

/// values[i] of Count registers, by the bits of i. (Comparing i with each index is what compilers undo.)
template <int Count, class S> __device__ __forceinline__ S picked(S const* values, int i) {
  if constexpr (Count == 1) {
    return values[0];
  } else {
    constexpr int half = Count <= 2 ? 1 : Count <= 4 ? 2 : Count <= 8 ? 4 : Count <= 16 ? 8 : 16;
    S const lower = picked<half>(values, i), upper = picked<Count - half>(values + half, i);
    return (i & half) != 0 ? upper : lower;
  }
}

/// Integers in the order of numbers, above 0; −0 is 0.
__device__ __forceinline__ std::uint32_t ordered_bits(float v) {
  auto const bits = moiety::detail::bit_cast<std::uint32_t>(v + 0.0f);
  return (bits >> 31) != 0u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ std::uint64_t ordered_bits(double v) {
  auto const bits = moiety::detail::bit_cast<std::uint64_t>(v + 0.0);
  return (bits >> 63) != 0u ? ~bits : bits | 0x8000000000000000u;
}

inline constexpr unsigned ordered_zero = 0x80000000u;
/// The float of an integer that ordered_bits made.
__device__ __forceinline__ float unordered(unsigned key) {
  return moiety::detail::bit_cast<float>((key & 0x80000000u) != 0u ? key ^ 0x80000000u : ~key);
}

/// The index of the best of all lanes, the same in each.
__device__ __forceinline__ unsigned best_index(indexed_value<float> mine) {
  unsigned const key = mine.index == indexed_value<float>::none ? 0u : ordered_bits(mine.value);
  unsigned const best = __reduce_max_sync(all_lanes, key);
  return __reduce_min_sync(all_lanes, key == best ? mine.index : indexed_value<float>::none);
}

__device__ __forceinline__ unsigned best_index(indexed_value<double> mine) {
  MOIETY_REGISTERS
  for (int distance = 16; distance > 0; distance /= 2) {
    double const value = __shfl_xor_sync(all_lanes, mine.value, distance);
    unsigned const index = __shfl_xor_sync(all_lanes, mine.index, distance);
    if (value > mine.value || (value == mine.value && index < mine.index)) mine.value = value, mine.index = index;
  }
  return mine.index;
}

}  // namespace gpu

template <std::floating_point S, int N> class warp_row {
 public:
  using value_type = S;
  static constexpr int registers = N, lanes = warp_lanes;

  /// One value of the row, which lives in one lane.
  class element {
   public:
    __device__ __forceinline__ element(warp_row const& row, int i) : row_(row), i_(i) {}
    element(element const&) = default;
    __device__ __forceinline__ operator S() const { return row_.get(i_); }
    __device__ __forceinline__ element const& operator=(S v) const {
      row_.set(i_, [&](S) { return v; });
      return *this;
    }
    __device__ __forceinline__ element const& operator=(element const& other) const {
      return *this = static_cast<S>(other);
    }
    __device__ __forceinline__ element const& operator+=(S v) const {
      row_.set(i_, [&](S old) { return old + v; });
      return *this;
    }

   private:
    warp_row const& row_;
    int i_;
  };

  __device__ __forceinline__ warp_row(S* values, int size) : values_(values), size_(size), lane_(lane_of_thread()) {}

  __device__ __forceinline__ int size() const { return size_; }
  __device__ __forceinline__ element operator[](std::int64_t i) const { return {*this, static_cast<int>(i)}; }

  /// Calls f(i, value i) for the values of this lane.
  template <class F> __device__ __forceinline__ void each(F const& f) const {
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r)
      if (index(r) < size_) f(index(r), values_[r]);
  }

  __device__ __forceinline__ S max() const {
    auto const larger = [](S a, S b) { return b > a ? b : a; };
    S best = -moiety::detail::infinity<S>;
    each([&](int, S v) { best = larger(best, v); });
    if constexpr (std::same_as<S, float>)
      if (unsigned const key = __reduce_max_sync(all_lanes, gpu::ordered_bits(best)); key != gpu::ordered_zero)
        return gpu::unordered(key);
    MOIETY_REGISTERS
    for (int distance = 16; distance > 0;
         distance /= 2) {  // the lower lane first: of 0 and −0 the host's is the result
      S const other = __shfl_xor_sync(all_lanes, best, distance);
      bool const upper = (lane_ & distance) != 0;
      best = larger(upper ? other : best, upper ? best : other);
    }
    return best;
  }

  __device__ __forceinline__ S sum() const {
    return folded([](S total, int, S v) { return total + v; });
  }

  template <class F> __device__ __forceinline__ S sum(F const& f) const {
    return folded([&](S total, int, S v) { return total + static_cast<S>(f(v)); });
  }

  __device__ __forceinline__ S dot(warp_row const& other) const {
    S total = 0;
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r)
      if (index(r) < size_) total = fma(values_[r], other.values_[r], total);
    return halved(total);
  }

  __device__ __forceinline__ int argmax() const { return chosen(gpu::best_index(own_best())); }

  template <int K, class F> __device__ __forceinline__ void largest(F const& f) const requires std::same_as<S, float> {
    gpu::registers_of<unsigned, N> keys;  // 0 where there is no value
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r)
      keys[r] = index(r) < size_ && values_[r] == values_[r] ? gpu::ordered_bits(values_[r]) : 0u;
    MOIETY_REGISTERS
    for (int rank = 0; rank < K; ++rank) {
      unsigned mine = 0;
      MOIETY_REGISTERS
      for (int r = 0; r < N; ++r) mine = keys[r] > mine ? keys[r] : mine;
      unsigned const key = __reduce_max_sync(all_lanes, mine);
      unsigned lowest = gpu::indexed_value<S>::none;
      MOIETY_REGISTERS
      for (int r = N - 1; r >= 0; --r) lowest = keys[r] == key ? static_cast<unsigned>(index(r)) : lowest;
      int const best = key != 0u ? chosen(__reduce_min_sync(all_lanes, lowest)) : -1;
      f(rank, best);
      MOIETY_REGISTERS
      for (int r = 0; r < N; ++r) keys[r] = index(r) == best ? 0u : keys[r];
    }
  }
  template <int K, class F> __device__ __forceinline__ void largest(F const& f) const requires std::same_as<S, double> {
    gpu::indexed_value<S> mine = own_best();
    MOIETY_REGISTERS
    for (int rank = 0; rank < K; ++rank) {
      unsigned const best = gpu::best_index(mine);
      f(rank, chosen(best));
      remove(chosen(best));
      if (best == mine.index) mine = own_best();
    }
  }

  template <int K> __device__ __forceinline__ S sum_of_largest(int first, int last) const {
    gpu::registers_of<S, N> left;
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r)
      left[r] = index(r) >= first && index(r) < last ? values_[r] : moiety::detail::not_a_number<S>;
    warp_row const part(left, size_);
    gpu::registers_of<S, K> best;
    MOIETY_REGISTERS
    for (int rank = 0; rank < K; ++rank) {
      int const i = part.argmax();
      best[rank] = i < 0 ? -moiety::detail::infinity<S> : static_cast<S>(part[i]);  // of 0 and −0 the host's
      part.remove(i);
    }
    return moiety::detail::sum_of_found(best);
  }

  __device__ __forceinline__ void remove(int i) const {
    if (moiety::detail::is_index(i, size_)) set(i, [](S) { return moiety::detail::not_a_number<S>; });
  }

  template <class F> __device__ __forceinline__ void map(F const& f) const {
    each([&](int, S& v) { v = static_cast<S>(f(v)); });
  }

  template <class F> __device__ __forceinline__ void map(warp_row const& other, F const& f) const {
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r)
      if (index(r) < size_) values_[r] = static_cast<S>(f(values_[r], other.values_[r]));
  }

  template <class F> __device__ __forceinline__ void map_indexed(F const& f) const {
    each([&](int i, S& v) { v = static_cast<S>(f(v, i)); });
  }

 private:
  __device__ __forceinline__ int index(int r) const { return lane_ + r * lanes; }

  /// value i = f(value i), in the lane that has it. All registers are assigned to, as a choice of one is no register.
  template <class F> __device__ __forceinline__ void set(int i, F const& f) const {
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r) values_[r] = i == index(r) ? f(values_[r]) : values_[r];
  }

  __device__ __forceinline__ S get(int i) const {
    return __shfl_sync(all_lanes, gpu::picked<N>(values_, i / lanes), i % lanes);
  }

  template <class Add> __device__ __forceinline__ S folded(Add const& add) const {
    S total = 0;
    each([&](int i, S v) { total = add(total, i, v); });
    return halved(total);
  }

  __device__ __forceinline__ static S halved(S total) {
    MOIETY_REGISTERS
    for (int distance = 16; distance > 0; distance /= 2) total = total + __shfl_xor_sync(all_lanes, total, distance);
    return total;
  }

  __device__ __forceinline__ gpu::indexed_value<S> own_best() const {
    gpu::indexed_value<S> best;
    each([&](int i, S v) {
      if (v > best.value || (v == best.value && best.index == gpu::indexed_value<S>::none))
        best.value = v, best.index = static_cast<unsigned>(i);
    });
    return best;
  }

  __device__ __forceinline__ static int chosen(unsigned index) { return static_cast<int>(index); }  // none is −1

  S* values_;
  int size_, lane_;
};

}  // namespace moiety::inline MOIETY_ABI::kernels
