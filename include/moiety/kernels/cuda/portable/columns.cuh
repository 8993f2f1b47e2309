// SPDX-License-Identifier: Apache-2.0
// N adjacent columns of a row between memory of an element type and sums in registers: wide where all N exist and lie
// aligned, else element by element; those from `count` on are read as 0 and not written.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

/// As many elements as one access moves: at most 16 bytes, in words.
template <class T, int N> struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) column_vector {
  static constexpr int count = sizeof(T) * N > 16 ? 16 / static_cast<int>(sizeof(T)) : N;
  using word = std::conditional_t<sizeof(T) == 2 && count == 1, std::uint16_t,
                                  std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>>;
  static constexpr int words = static_cast<int>(sizeof(T)) * count / static_cast<int>(sizeof(word)),
                       elements_of_word = count / words;
  word bits[words];

  __device__ T element(int i) const {
    if constexpr (elements_of_word == 1)
      return moiety::detail::bit_cast<T>(bits[i]);
    else
      return moiety::detail::bit_cast<T>(static_cast<std::uint16_t>(bits[i / 2] >> (i % 2 * 16)));
  }
  /// Element after element, from the first on.
  __device__ void set(int i, T value) {
    if constexpr (elements_of_word == 1)
      bits[i] = moiety::detail::bit_cast<word>(value);
    else if (i % 2 == 0)
      bits[i / 2] = moiety::detail::bit_cast<std::uint16_t>(value);
    else
      bits[i / 2] |= static_cast<word>(moiety::detail::bit_cast<std::uint16_t>(value)) << 16;
  }
};

template <class Vector> __device__ inline Vector load_vector(void const* from) {
  return *static_cast<Vector const*>(from);
}
/// To global memory. Said by instruction: where the same place may be written in parts, too, compilers split an assignment.
template <class Vector> __device__ inline void store_vector(void* to, Vector const& value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Vector) == 16) {
    uint4 const words = __builtin_bit_cast(uint4, value);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};\n"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
    return;
  } else if constexpr (sizeof(Vector) == 8) {
    uint2 const words = __builtin_bit_cast(uint2, value);
    asm volatile("st.global.v2.u32 [%0], {%1, %2};\n"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(words.x), "r"(words.y)
                 : "memory");
    return;
  }
#endif
  *static_cast<Vector*>(to) = value;
}

template <int N, class T> __device__ inline bool moves_wide(T const* at, int count) {
  return count == N && reinterpret_cast<std::uintptr_t>(at) % alignof(column_vector<T, N>) == 0;
}

/// All N, which lie aligned.
template <int N, class T, class S> __device__ inline void load_wide(T const* from, S (&to)[N]) {
  using vector = column_vector<T, N>;
  MOIETY_REGISTERS
  for (int i = 0; i < N; i += vector::count) {
    auto const part = load_vector<vector>(from + i);
    MOIETY_REGISTERS
    for (int j = 0; j < vector::count; ++j) to[i + j] = static_cast<S>(part.element(j));
  }
}

/// N columns as they lie in memory: what has been asked for is not looked at before it is needed.
template <class T, int N> struct held_columns {
  using vector = column_vector<T, N>;
  static constexpr int width = vector::count;
  vector parts[N / width];

  /// From an aligned place; zeros for null.
  __device__ void load(T const* from) {
    MOIETY_REGISTERS
    for (int i = 0; i < N / width; ++i) {
      parts[i] = {};
      if (from != nullptr) parts[i] = load_vector<vector>(from + i * width);
    }
  }
  /// From anywhere, one by one: the first `count`, zeros behind them.
  __device__ void gather(T const* from, int count) {
    MOIETY_REGISTERS
    for (int i = 0; i < N; ++i) parts[i / width].set(i % width, i < count ? from[i] : T(0.0f));
  }
  __device__ void read(T const* from, int count) {
    if (moves_wide<N>(from, count))
      load(from);
    else
      gather(from, count);
  }
  __device__ T element(int i) const { return parts[i / width].element(i % width); }
};

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
      for (int j = 0; j < vector::count; ++j) part.set(j, static_cast<T>(from[i + j]));
      store_vector(to + i, part);
    }
    return;
  }
  MOIETY_REGISTERS
  for (int i = 0; i < N; ++i)
    if (i < count) to[i] = static_cast<T>(from[i]);
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
