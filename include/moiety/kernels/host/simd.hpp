// SPDX-License-Identifier: Apache-2.0
// Vector registers of the host: one type of the width that the build's instruction set has, and the few operations
// that the kernels need. Every operation works lane by lane and gives the bits of its scalar counterpart: fma is
// mo::fma in each lane, loads convert exactly as the storage types do.
//
// The types are GCC/Clang vector extensions; fma is written with intrinsics, because contraction of a * b + c is the
// compiler's choice.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace moiety::inline MOIETY_ABI::simd {

/// Two values side by side in the direction of a sum, the first in the lower half: what a bf16 dot product takes.
struct bf16_pair {
  std::uint32_t bits = 0;
};

namespace detail {
// Three specialisations, because g++ 12 handles vectors of a dependent size only partly.
template <class S> struct vector_of;
template <> struct vector_of<float> { typedef float type __attribute__((vector_size(MOIETY_VECTOR_BYTES))); };
template <> struct vector_of<double> { typedef double type __attribute__((vector_size(MOIETY_VECTOR_BYTES))); };
template <> struct vector_of<bf16_pair> {
  typedef std::uint32_t type __attribute__((vector_size(MOIETY_VECTOR_BYTES)));
};
}  // namespace detail

/// One register of float, double or pairs of bf16.
template <class S> using vec = typename detail::vector_of<S>::type;

/// Lanes of vec<S>: 16, 8 or 4 floats, half as many doubles.
template <class S> inline constexpr int lanes = MOIETY_VECTOR_BYTES / static_cast<int>(sizeof(S));

/// lanes<S> registers: the rows of a square.
template <class S> using square = vec<S>[static_cast<std::size_t>(lanes<S>)];

/// Whether there are 32 registers, or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr bool many_registers = true;
#else
inline constexpr bool many_registers = false;
#endif

template <class S> [[gnu::always_inline]] inline vec<S> load(S const* from) {
  vec<S> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class S> [[gnu::always_inline]] inline void store(S* to, vec<S> value) {
  std::memcpy(static_cast<void*>(to), &value, sizeof value);
}

template <class S> [[gnu::always_inline]] inline vec<S> zero() { return vec<S>{}; }

/// value in every lane.
[[gnu::always_inline]] inline vec<float> broadcast(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX__)
  return _mm256_set1_ps(value);
#else
  return vec<float>{value, value, value, value};
#endif
}
[[gnu::always_inline]] inline vec<double> broadcast(double value) {
#if defined(__AVX512F__)
  return _mm512_set1_pd(value);
#elif defined(__AVX__)
  return _mm256_set1_pd(value);
#else
  return vec<double>{value, value};
#endif
}

[[gnu::always_inline]] inline vec<bf16_pair> broadcast(bf16_pair value) {
#if defined(__AVX512F__)
  return (vec<bf16_pair>)_mm512_set1_epi32(static_cast<int>(value.bits));
#elif defined(__AVX__)
  return (vec<bf16_pair>)_mm256_set1_epi32(static_cast<int>(value.bits));
#else
  return vec<bf16_pair>{value.bits, value.bits, value.bits, value.bits};
#endif
}

/// mo::fma(a, b, c) in every lane.
[[gnu::always_inline]] inline vec<float> fma(vec<float> a, vec<float> b, vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif MOIETY_HAS_FMA
  for (int i = 0; i < lanes<float>; ++i) c[i] = moiety::fma(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
[[gnu::always_inline]] inline vec<double> fma(vec<double> a, vec<double> b, vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif MOIETY_HAS_FMA
  for (int i = 0; i < lanes<double>; ++i) c[i] = moiety::fma(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

/// c + a · b of both values of a pair in every lane, the second first: fma(a₀, b₀, fma(a₁, b₁, c)). The instruction takes
/// denormal operands and results as zero; elsewhere they count.
[[gnu::always_inline]] inline vec<float> fma(vec<bf16_pair> a, vec<bf16_pair> b, vec<float> c) {
#if defined(__AVX512BF16__)
  return (vec<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
  constexpr std::uint32_t second = 0xffff0000u;
  c = fma((vec<float>)(a & second), (vec<float>)(b & second), c);
  return fma((vec<float>)(a << 16), (vec<float>)(b << 16), c);
#endif
}

/// lanes<S> values of type T, widened to S; or lanes<bf16_pair> pairs of neighbours.
template <class S, class T> [[gnu::always_inline]] inline vec<S> load_as(T const* from) {
  if constexpr (std::is_same_v<S, T>) {
    return load(from);
  } else if constexpr (std::is_same_v<S, bf16_pair>) {
    vec<S> value;
    std::memcpy(&value, from, sizeof value);
    return value;
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<S, float> && std::is_same_v<T, bf16>) {
    __m256i bits;
    std::memcpy(&bits, from, sizeof bits);
    typedef std::uint32_t words __attribute__((vector_size(64)));
    auto const wide = (words)_mm512_maskz_cvtepu16_epi32(0xffff, bits) << 16;  // g++ 12 warns about the unmasked form
    return (vec<float>)wide;
  } else if constexpr (std::is_same_v<S, float> && std::is_same_v<T, fp16>) {
    __m256i bits;
    std::memcpy(&bits, from, sizeof bits);
    return _mm512_maskz_cvtph_ps(0xffff, bits);
#elif defined(__AVX2__) && defined(__F16C__)
  } else if constexpr (std::is_same_v<S, float> && std::is_same_v<T, bf16>) {
    __m128i bits;
    std::memcpy(&bits, from, sizeof bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  } else if constexpr (std::is_same_v<S, float> && std::is_same_v<T, fp16>) {
    __m128i bits;
    std::memcpy(&bits, from, sizeof bits);
    return _mm256_cvtph_ps(bits);
#endif
  } else {
    alignas(MOIETY_VECTOR_BYTES) S widened[static_cast<std::size_t>(lanes<S>)];
    for (int i = 0; i < lanes<S>; ++i) widened[i] = static_cast<S>(from[i]);
    return load(widened);
  }
}

/// The first count (too few for load_as) values of type T, as load_as gives them; zeros after them. Reads nothing beyond.
template <class S, class T> inline vec<S> load_first(T const* from, std::int64_t count) {
  if constexpr (std::is_same_v<S, bf16_pair>) {
    vec<S> pairs{};
    std::memcpy(&pairs, from, static_cast<std::size_t>(count) * sizeof(T));
    return pairs;
  } else {
    alignas(MOIETY_VECTOR_BYTES) S widened[static_cast<std::size_t>(lanes<S>)] = {};
    for (std::int64_t i = 0; i < count; ++i) widened[i] = static_cast<S>(from[i]);
    return load(widened);
  }
}

/// lanes<bf16_pair> pairs of one value from each of two rows; without a second row, of a value and 0.
[[gnu::always_inline]] inline vec<bf16_pair> load_zipped(bf16 const* first, bf16 const* second) {
#if defined(__AVX512F__)
  auto const words = [](bf16 const* from) {
    __m256i bits;
    std::memcpy(&bits, from, sizeof bits);
    return (vec<bf16_pair>)_mm512_maskz_cvtepu16_epi32(0xffff, bits);
  };
  return second != nullptr ? words(first) | words(second) << 16 : words(first);
#else
  vec<bf16_pair> pairs{};
  for (int i = 0; i < lanes<bf16_pair>; ++i)
    pairs[i] = first[i].bits | (second != nullptr ? std::uint32_t{second[i].bits} << 16 : 0u);
  return pairs;
#endif
}

/// The same of twice as many pairs, in two registers.
[[gnu::always_inline]] inline void load_zipped(bf16 const* first, bf16 const* second, vec<bf16_pair>& low,
                                               vec<bf16_pair>& high) {
#if defined(__AVX512BW__)
  typedef std::uint16_t words __attribute__((vector_size(64)));
  words a, b{};
  std::memcpy(&a, first, sizeof a);
  if (second != nullptr) std::memcpy(&b, second, sizeof b);
  auto const zip = [&]<int... Lane>(int from, std::integer_sequence<int, Lane...>) {
    words const places{static_cast<std::uint16_t>(from + Lane / 2 + Lane % 2 * 32)...};
    return (vec<bf16_pair>)_mm512_permutex2var_epi16((__m512i)a, (__m512i)places, (__m512i)b);
  };
  low = zip(0, std::make_integer_sequence<int, 32>());
  high = zip(16, std::make_integer_sequence<int, 32>());
#else
  constexpr int pairs = lanes<bf16_pair>;
  low = load_zipped(first, second);
  high = load_zipped(first + pairs, second != nullptr ? second + pairs : nullptr);
#endif
}

/// Stores past the caches, to an address that is a multiple of vector_bytes. A fence must follow before others read.
template <class S> [[gnu::always_inline]] inline void store_past_caches(S* to, vec<S> value) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)value);
#elif defined(__AVX__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)value);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)value);
#else
  store(to, value);
#endif
}
inline void fence_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline constexpr bool has_halves = MOIETY_HAS_HALVES;
#if MOIETY_HAS_HALVES
// Lower halves of registers: cores whose units have half the width of one take half as long for them.

namespace detail {
template <class S> struct half_of;
template <> struct half_of<float> { typedef float type __attribute__((vector_size(MOIETY_VECTOR_BYTES / 2))); };
template <> struct half_of<double> { typedef double type __attribute__((vector_size(MOIETY_VECTOR_BYTES / 2))); };
template <> struct half_of<bf16_pair> {
  typedef std::uint32_t type __attribute__((vector_size(MOIETY_VECTOR_BYTES / 2)));
};
}  // namespace detail
template <class S> using half_vec = typename detail::half_of<S>::type;

template <class S> [[gnu::always_inline]] inline half_vec<S> load_half(S const* from) {
  half_vec<S> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class S> [[gnu::always_inline]] inline void store_half(S* to, half_vec<S> value) {
  std::memcpy(static_cast<void*>(to), &value, sizeof value);
}
template <class S> [[gnu::always_inline]] inline half_vec<S> lower_half(vec<S> const& of) {
  half_vec<S> value;
  std::memcpy(&value, &of, sizeof value);
  return value;
}

/// As fma of whole registers.
[[gnu::always_inline]] inline half_vec<float> fma_half(half_vec<float> a, half_vec<float> b, half_vec<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline half_vec<double> fma_half(half_vec<double> a, half_vec<double> b, half_vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
[[gnu::always_inline]] inline half_vec<float> fma_half(half_vec<bf16_pair> a, half_vec<bf16_pair> b,
                                                       half_vec<float> c) {
#if defined(__AVX512BF16__)
  return (half_vec<float>)_mm256_dpbf16_ps((__m256)c, (__m256bh)a, (__m256bh)b);
#else
  constexpr std::uint32_t second = 0xffff0000u;
  c = fma_half((half_vec<float>)(a & second), (half_vec<float>)(b & second), c);
  return fma_half((half_vec<float>)(a << 16), (half_vec<float>)(b << 16), c);
#endif
}
#endif

/// Stores the first count lanes.
template <class S> inline void store_first(S* to, vec<S> value, std::int64_t count) {
  std::memcpy(to, &value, static_cast<std::size_t>(count) * sizeof(S));
}

namespace detail {

// One step of the transposition: exchanges the blocks of size Half off the diagonal of each block of size 2 * Half.
template <int Half, class V, std::size_t... Lane>
[[gnu::always_inline]] inline void exchange(V& upper, V& lower, std::index_sequence<Lane...>) {
  V const a = upper, b = lower;
  upper = V{((Lane & Half) == 0 ? a[Lane] : b[Lane ^ Half])...};
  lower = V{((Lane & Half) == 0 ? a[Lane ^ Half] : b[Lane])...};
}

template <class S, int Half> [[gnu::always_inline]] inline void exchange_blocks(square<S>& rows) {
  MOIETY_UNROLL(16)
  for (int i = 0; i < lanes<S>; ++i)
    if ((i & Half) == 0)
      exchange<Half>(rows[i], rows[i + Half], std::make_index_sequence<static_cast<std::size_t>(lanes<S>)>());
}

// Shuffles of two registers of sixteen lanes, one instruction each: where lane `lane` of the result comes from, 16 and more
// being of the second. `high` takes what is left over.
constexpr int singles(int lane, int high) { return lane / 4 * 4 + lane % 4 / 2 + 2 * high + lane % 2 * 16; }
constexpr int pairs(int lane, int high) { return lane / 4 * 4 + lane % 2 + 2 * high + lane % 4 / 2 * 16; }
constexpr int halves(int lane, int high) { return lane % 8 + 8 * high + lane / 8 * 16; }
constexpr int quarters(int lane, int high) { return lane % 4 + 4 * high + lane / 4 % 2 * 8 + lane / 8 * 16; }

template <int (*Source)(int, int), class V, int... Lane>
[[gnu::always_inline]] inline void shuffle(V& first, V& second, std::integer_sequence<int, Lane...>) {
  V const a = first, b = second;
  first = V{(Source(Lane, 0) < 16 ? a : b)[Source(Lane, 0) % 16]...};
  second = V{(Source(Lane, 1) < 16 ? a : b)[Source(Lane, 1) % 16]...};
}

// Fours of rows are interleaved within the quarters of registers, then the quarters change places.
template <class S> [[gnu::always_inline]] inline void transpose_sixteen(square<S>& rows) {
  constexpr auto all = std::make_integer_sequence<int, 16>();
  MOIETY_UNROLL(4)
  for (int i = 0; i < 16; i += 4) {
    shuffle<singles>(rows[i], rows[i + 1], all), shuffle<singles>(rows[i + 2], rows[i + 3], all);
    shuffle<pairs>(rows[i], rows[i + 2], all), shuffle<pairs>(rows[i + 1], rows[i + 3], all);
    std::swap(rows[i + 1], rows[i + 2]);
  }
  MOIETY_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    shuffle<halves>(rows[i], rows[i + 4], all), shuffle<halves>(rows[i + 8], rows[i + 12], all);
    shuffle<quarters>(rows[i], rows[i + 8], all), shuffle<quarters>(rows[i + 4], rows[i + 12], all);
    std::swap(rows[i + 4], rows[i + 8]);
  }
}

}  // namespace detail

/// Transposes a square of lanes x lanes in registers.
template <class S> [[gnu::always_inline]] inline void transpose(square<S>& rows) {
  constexpr int size = lanes<S>;
  if constexpr (size == 16) return detail::transpose_sixteen<S>(rows);
  if constexpr (size > 4) detail::exchange_blocks<S, 4>(rows);
  if constexpr (size > 2) detail::exchange_blocks<S, 2>(rows);
  detail::exchange_blocks<S, 1>(rows);
}

}  // namespace moiety::inline MOIETY_ABI::simd
