// SPDX-License-Identifier: Apache-2.0
// Writing rows that nobody reads soon. A store to a line that is not in a cache first reads that line from memory;
// stores that pass the caches by do not, and leave what is cached in place. They pay once an output is larger than the
// last cache. Values are the same either way.
#pragma once

#include <moiety/core/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace moiety::inline MOIETY_ABI {

enum class stores { cached, streamed };

/// Outputs above this are streamed: about a last-level cache of the machines that train, of which a call has a part.
inline constexpr std::int64_t last_level_bytes = std::int64_t{32} << 20;

inline stores stores_for(std::int64_t bytes) { return bytes > last_level_bytes ? stores::streamed : stores::cached; }

inline constexpr std::size_t line_bytes = 64;

/// Bytes from `address` up to the next line, 0 at its beginning.
inline std::size_t to_next_line(void const* address) {
  return (line_bytes - reinterpret_cast<std::uintptr_t>(address) % line_bytes) % line_bytes;
}

namespace detail {

/// One line, at an address that begins one.
inline void stream_line(std::byte* to, std::byte const* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__SSE2__)
  for (std::size_t i = 0; i < line_bytes; i += sizeof(__m128i))
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<__m128i const*>(from + i)));
#else
  std::memcpy(to, from, line_bytes);
#endif
}

inline void stream_bytes(std::byte* to, std::byte const* from, std::size_t bytes) {
  std::size_t const head = std::min(to_next_line(to), bytes);
  std::memcpy(to, from, head);
  std::size_t at = head;
  for (; at + line_bytes <= bytes; at += line_bytes) stream_line(to + at, from + at);
  std::memcpy(to + at, from + at, bytes - at);
}

}  // namespace detail

/// Copies `count` values that do not overlap. A task that streams ends with finish_stores.
template <class T> void write_row(T* to, T const* from, std::int64_t count, stores how) {
  std::size_t const bytes = static_cast<std::size_t>(count) * sizeof(T);
  if (bytes == 0) return;
  if (how == stores::streamed)
    detail::stream_bytes(reinterpret_cast<std::byte*>(to), reinterpret_cast<std::byte const*>(from), bytes);
  else
    std::memcpy(to, from, bytes);
}

/// Orders streamed stores before whatever tells another thread that they are there.
inline void finish_stores([[maybe_unused]] stores how) {
#if defined(__SSE2__)
  if (how == stores::streamed) _mm_sfence();
#endif
}

/// Asks for the line of `address`, to be read soon.
[[gnu::always_inline]] inline void prefetch(void const* address) { __builtin_prefetch(address, 0, 2); }

}  // namespace moiety
