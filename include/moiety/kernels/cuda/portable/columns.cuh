// SPDX-License-Identifier: Apache-2.0
// N adjacent columns of a row between memory of an element type and sums in registers: wide where all N exist and lie
// aligned, else element by element; those from `count` on are read as 0 and not written.
#pragma once

#include <moiety/core/config.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

/// As many elements as one access moves.
template <class T, int N> struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) column_vector {
  static constexpr int count = sizeof(T) * N > 16 ? 16 / static_cast<int>(sizeof(T)) : N;
  T elements[count];
};

template <int N, class T> __device__ inline bool moves_wide(T const* at, int count) {
  return count == N && reinterpret_cast<std::uintptr_t>(at) % alignof(column_vector<T, N>) == 0;
}

/// All N, which lie aligned.
template <int N, class T, class S> __device__ inline void load_wide(T const* from, S (&to)[N]) {
  using vector = column_vector<T, N>;
  MOIETY_REGISTERS
  for (int i = 0; i < N; i += vector::count) {
    vector const part = *reinterpret_cast<vector const*>(from + i);
    MOIETY_REGISTERS
    for (int j = 0; j < vector::count; ++j) to[i + j] = static_cast<S>(part.elements[j]);
  }
}

template <int N, class T, class S> __device__ inline void load_columns(T const* from, int count, S (&to)[N]) {
  if (moves_wide<N>(from, count)) return load_wide(from, to);
  MOIETY_REGISTERS
  for (int i = 0; i < N; ++i) to[i] = i < count ? static_cast<S>(from[i]) : S{0};
}

template <int N, class T, class S> __device__ inline void store_columns(T* to, int count, S const (&from)[N]) {
  using vector = column_vector<T, N>;
  if (moves_wide<N>(to, count)) {
    MOIETY_REGISTERS
    for (int i = 0; i < N; i += vector::count) {
      vector part;
      MOIETY_REGISTERS
      for (int j = 0; j < vector::count; ++j) part.elements[j] = static_cast<T>(from[i + j]);
      *reinterpret_cast<vector*>(to + i) = part;
    }
    return;
  }
  MOIETY_REGISTERS
  for (int i = 0; i < N; ++i)
    if (i < count) to[i] = static_cast<T>(from[i]);
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
