// SPDX-License-Identifier: Apache-2.0
// Which `wanted` of a list of values are the largest, found by one block without sorting: a radix select.
//
//   find_cut<Key>(count, wanted, key)   key(i), an unsigned integer, stands for value i of a list in the order of the
//                                       values; of equal ones the lower index is the larger. cut.keeps(key(i), i)
//   sum_of_block(value)                 the sum of an integer over the threads of a block
//
// Eight bits at a time from the highest: the numbers of values that have each digit say which one the last value kept
// has, until all values of that digit are kept. All is counted in integers, so nothing depends on the order of threads.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/permute.cuh>
#include <moiety/kernels/cuda/portable/warp_row.cuh>

#include <cuda_runtime.h>

#include <concepts>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

inline constexpr int cut_threads = 256;  // one for each digit

/// All threads of a block call it together.
__device__ inline int sum_of_block(int value) {
  __shared__ int total;
  __syncthreads();  // the sum of a call before has been read
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, value);
  __syncthreads();
  return total;
}

/// Parts the values of a list: those above `key` are kept, and of those equal to it the ones up to index `last`.
template <std::unsigned_integral Key> struct largest_cut {
  Key key;
  std::int64_t last;

  __device__ bool keeps(Key k, std::int64_t i) const { return k > key || (k == key && i <= last); }
};

/// The index of the tie that `left` ties come up to, that one counted.
template <std::unsigned_integral Key, class KeyOf>
__device__ __forceinline__ std::int64_t find_tie(std::int64_t count, Key tied, int left, KeyOf const& key_of) {
  __shared__ std::int64_t found;
  for (std::int64_t first = 0;; first += cut_threads) {
    std::int64_t const i = first + threadIdx.x;
    bool const tie = i < count && key_of(i) == tied;
    int const ties = __syncthreads_count(tie ? 1 : 0);
    if (ties < left) {
      left -= ties;
      continue;
    }
    int const before = sum_before<cut_threads>(tie ? 1 : 0);
    if (tie && before + 1 == left) found = i;
    __syncthreads();
    return found;
  }
}

/// All threads of a block of cut_threads call it together; count is below 2³¹.
template <std::unsigned_integral Key, class KeyOf>
__device__ __forceinline__ largest_cut<Key> find_cut(std::int64_t count, std::int64_t wanted, KeyOf const& key_of) {
  constexpr int digit_bits = 8, bits = 8 * static_cast<int>(sizeof(Key));
  static_assert(cut_threads == 1 << digit_bits);
  struct digit_found {
    unsigned digit;
    int left, count;
  };
  __shared__ int counts[cut_threads];
  __shared__ digit_found found;
  if (wanted <= 0) return {static_cast<Key>(-1), -1};
  if (wanted >= count) return {0, count - 1};
  Key prefix = 0;
  int left = static_cast<int>(wanted);
  for (int shift = bits - digit_bits; shift >= 0; shift -= digit_bits) {
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < count; i += cut_threads) {
      Key const digit = (key_of(i) ^ prefix) >> shift;  // of a value without the prefix it is no digit
      if (digit < cut_threads) atomicAdd(&counts[digit], 1);
    }
    __syncthreads();
    unsigned const digit = cut_threads - 1 - threadIdx.x;
    int const here = counts[digit], above = sum_before<cut_threads>(here);
    if (above < left && left <= above + here) found = {digit, left - above, here};
    __syncthreads();
    prefix |= Key{found.digit} << shift;
    left = found.left;
    if (left == found.count) return {prefix, count - 1};
  }
  return {prefix, find_tie(count, prefix, left, key_of)};
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
