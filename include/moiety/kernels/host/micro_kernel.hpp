// SPDX-License-Identifier: Apache-2.0
// The innermost loop of every product on the host: a tile of sums held in registers, a few rows of one operand, the
// narrow one, whose values are broadcast, against one to three registers of the other, the wide one.
//
//   sums(i, j) = chain over steps k of narrow(i, k) * wide(k, j)
//
// A step is one value of a unit: float, double, or a pair of bf16, whose products enter the sum second first (see
// simd::fma). A chain goes through every step in ascending order, from the sum that is there or from +0, so tiles and
// blocks of steps change no bit.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/host/simd.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::kernels::host_gemm {

using simd::bf16_pair;

/// The unit in which values of A and B are multiplied and summed in S.
template <class S, class A, class B>
using unit_of =
    std::conditional_t<std::same_as<S, float> && std::same_as<A, bf16> && std::same_as<B, bf16>, bf16_pair, S>;

template <class U> using sum_of = std::conditional_t<std::same_as<U, bf16_pair>, float, U>;

/// Values of k in one unit.
template <class U> inline constexpr std::int64_t values_per_unit = std::same_as<U, bf16_pair> ? 2 : 1;

template <class U> constexpr std::int64_t steps_of(std::int64_t k) {
  return (k + values_per_unit<U> - 1) / values_per_unit<U>;
}

inline constexpr int most_narrow = simd::many_registers ? 8 : 4;  // rows of the narrow operand
inline constexpr int most_vectors = 3;                            // registers across the wide one

/// A narrow operand as rows in memory at one distance in bytes, each with its steps side by side.
template <class U> struct strided_rows {
  std::byte const* first;
  std::int64_t stride;

  [[gnu::always_inline]] U at(int i) const {
    U value;
    std::memcpy(&value, first + i * stride, sizeof value);
    return value;
  }
  void advance() { first += sizeof(U); }
};

/// A narrow operand packed step by step.
template <class U> struct packed_strip {
  U const* data;

  [[gnu::always_inline]] U at(int i) const { return data[i]; }
  void advance() { data += most_narrow; }
};

/// A wide operand packed as a panel.
template <class U, int Vectors> struct packed_panel {
  U const* data;

  [[gnu::always_inline]] void load(simd::vec<U>* to) const {
    MOIETY_UNROLL(3)
    for (int j = 0; j < Vectors; ++j) to[j] = simd::load(data + j * simd::lanes<U>);
  }
  void advance() { data += Vectors * simd::lanes<U>; }
};

/// A wide operand as it lies: a row for every step, or two for pairs; the last of `rows` may have no second.
template <class U, class T, int Vectors> struct rows_in_place {
  T const* row;
  std::int64_t stride, rows;

  [[gnu::always_inline]] void load(simd::vec<U>* to) const {
    constexpr int lanes = simd::lanes<U>;
    if constexpr (std::same_as<U, bf16_pair>) {
      T const* const next = rows > 1 ? row + stride : nullptr;
      MOIETY_UNROLL(3)
      for (int j = 0; j + 1 < Vectors; j += 2)
        simd::load_zipped(row + j * lanes, next != nullptr ? next + j * lanes : nullptr, to[j], to[j + 1]);
      constexpr int last = Vectors - 1;
      if constexpr (Vectors % 2 != 0)
        to[last] = simd::load_zipped(row + last * lanes, next != nullptr ? next + last * lanes : nullptr);
    } else {
      MOIETY_UNROLL(3)
      for (int j = 0; j < Vectors; ++j) to[j] = simd::load_as<U>(row + j * lanes);
    }
  }
  void advance() { row += values_per_unit<U> * stride, rows -= values_per_unit<U>; }
};

/// The same, packed into a panel in passing. Each row lies in another page: no hardware asks for those that follow.
template <class U, class T, int Vectors> struct rows_being_packed {
  rows_in_place<U, T, Vectors> rows;
  U* panel;
  static constexpr std::int64_t ahead = 46 * values_per_unit<U>;  // rows; off a power of two, see copied_stride
  static constexpr std::int64_t bytes = Vectors * simd::lanes<U> * static_cast<std::int64_t>(sizeof(T));  // of one

  [[gnu::always_inline]] void load(simd::vec<U>* to) const {
    rows.load(to);
    MOIETY_UNROLL(3)
    for (int j = 0; j < Vectors; ++j) simd::store<U>(panel + j * simd::lanes<U>, to[j]);
    MOIETY_UNROLL(2)
    for (std::int64_t i = 0; i < values_per_unit<U>; ++i) {
      MOIETY_UNROLL(3)
      for (std::int64_t line = 0; line < bytes; line += 64)
        __builtin_prefetch(reinterpret_cast<std::byte const*>(rows.row + (ahead + i) * rows.stride) + line, 0, 2);
    }
  }
  void advance() { rows.advance(), panel += Vectors * simd::lanes<U>; }
};

/// Where a tile's sums come from (null: from 0), and where they go: past the caches if `stream`.
template <class S> struct tile_sums {
  S const* from;
  std::int64_t from_stride;
  S* to;
  std::int64_t to_stride;
  bool stream = false;
};

/// Memory that will be needed soon, rows of one length at one distance, for the cache of a locality: every step asks for so many
/// lines at most, in the order of their addresses, which memory gives most of.
template <int Locality, int Lines> struct prefetch_rows {
  std::byte const* row = nullptr;
  std::int64_t bytes = 0, stride = 0;  // of a row, and to the next
  std::int64_t asked = 0, each = 0;    // of this row, and in every step

  [[gnu::always_inline]] void advance() {
    MOIETY_UNROLL(2)
    for (int line = 0; line < Lines; ++line) __builtin_prefetch(row + asked + line * (each / Lines), 0, Locality);
    asked += each;
    if (asked >= bytes) asked -= bytes, row += stride;
  }

  /// Share i of n of `rows` rows, over so many steps; a step moves by half lines, so that few ask for one line in two steps.
  static prefetch_rows share(std::byte const* first, std::int64_t rows, std::int64_t bytes, std::int64_t stride,
                             std::int64_t i, std::int64_t n, std::int64_t steps) {
    std::int64_t const all = rows * bytes, begin = all * i / n, least = Lines == 1 ? 32 : 64;
    return {first + begin / bytes * stride, bytes, stride, begin % bytes,
            std::clamp<std::int64_t>((all / (n * steps) + 31) / 32 * 32, least, 64 * Lines)};
  }
};

/// Lines that a kernel will need soon, in every step a few of them.
template <int Lines> struct prefetch_stream {
  std::byte const* next = nullptr;
  std::int64_t step = 0, apart = 0;  // bytes from step to step, and from line to line

  [[gnu::always_inline]] void advance() {
    MOIETY_UNROLL(3)
    for (int line = 0; line < Lines; ++line) __builtin_prefetch(next + line * apart, 0, 2);
    next += step;
  }
};

/// Two of them.
template <class First, class Second> struct prefetch_both {
  First first;
  Second second;

  [[gnu::always_inline]] void advance() { first.advance(), second.advance(); }
};
struct no_prefetch {
  void advance() {}
};

template <class U, int Rows, int Vectors, class Narrow, class Wide, class Prefetch>
void micro_kernel(std::int64_t steps, Narrow narrow, Wide wide, tile_sums<sum_of<U>> const& sums, Prefetch soon) {
  using S = sum_of<U>;
  constexpr int lanes = simd::lanes<U>;
  constexpr std::size_t high = Rows, across = Vectors;  // as array extents
  simd::vec<S> sum[high][across];
  MOIETY_UNROLL(8)
  for (int i = 0; i < Rows; ++i) {
    MOIETY_UNROLL(3)
    for (int j = 0; j < Vectors; ++j)
      sum[i][j] = sums.from != nullptr ? simd::load(sums.from + i * sums.from_stride + j * lanes) : simd::zero<S>();
  }
  MOIETY_UNROLL(1)  // clang writes eight steps out, whose operands push the sums out of the registers
  for (std::int64_t k = 0; k < steps; ++k) {
    simd::vec<U> right[across];
    wide.load(right);
    MOIETY_UNROLL(8)
    for (int i = 0; i < Rows; ++i) {
      simd::vec<U> const left = simd::broadcast(narrow.at(i));
      MOIETY_UNROLL(3)
      for (int j = 0; j < Vectors; ++j) sum[i][j] = simd::fma(left, right[j], sum[i][j]);
    }
    soon.advance();
    wide.advance();
    narrow.advance();
  }
  if (sums.stream) {
    MOIETY_UNROLL(8)
    for (int i = 0; i < Rows; ++i) {
      MOIETY_UNROLL(3)
      for (int j = 0; j < Vectors; ++j) simd::store_past_caches(sums.to + i * sums.to_stride + j * lanes, sum[i][j]);
    }
    return;
  }
  MOIETY_UNROLL(8)
  for (int i = 0; i < Rows; ++i) {
    MOIETY_UNROLL(3)
    for (int j = 0; j < Vectors; ++j) simd::store(sums.to + i * sums.to_stride + j * lanes, sum[i][j]);
  }
}

#if MOIETY_HAS_HALVES
/// The same of most_narrow rows against one or two registers, and the lower half of one more, whose upper half is not stored.
template <class U, int Whole, class Narrow, class Prefetch>
void half_kernel(std::int64_t steps, Narrow narrow, U const* wide, tile_sums<sum_of<U>> const& sums, Prefetch soon) {
  using S = sum_of<U>;
  constexpr int lanes = simd::lanes<U>, last = Whole * lanes;
  constexpr std::size_t high = most_narrow, across = Whole;
  simd::vec<S> sum[high][across];
  simd::half_vec<S> half[high];
  MOIETY_UNROLL(8)
  for (int i = 0; i < most_narrow; ++i) {
    MOIETY_UNROLL(2)
    for (int j = 0; j < Whole; ++j)
      sum[i][j] = sums.from != nullptr ? simd::load(sums.from + i * sums.from_stride + j * lanes) : simd::zero<S>();
    half[i] = sums.from != nullptr ? simd::load_half(sums.from + i * sums.from_stride + last) : simd::half_vec<S>{};
  }
  MOIETY_UNROLL(1)
  for (std::int64_t k = 0; k < steps; ++k, wide += last + lanes) {
    simd::vec<U> right[across];
    MOIETY_UNROLL(2)
    for (int j = 0; j < Whole; ++j) right[j] = simd::load(wide + j * lanes);
    simd::half_vec<U> const right_half = simd::load_half(wide + last);
    MOIETY_UNROLL(8)
    for (int i = 0; i < most_narrow; ++i) {
      simd::vec<U> const left = simd::broadcast(narrow.at(i));
      MOIETY_UNROLL(2)
      for (int j = 0; j < Whole; ++j) sum[i][j] = simd::fma(left, right[j], sum[i][j]);
      half[i] = simd::fma_half(simd::lower_half<U>(left), right_half, half[i]);
    }
    soon.advance();
    narrow.advance();
  }
  MOIETY_UNROLL(8)
  for (int i = 0; i < most_narrow; ++i) {
    MOIETY_UNROLL(2)
    for (int j = 0; j < Whole; ++j) simd::store(sums.to + i * sums.to_stride + j * lanes, sum[i][j]);
    simd::store_half(sums.to + i * sums.to_stride + last, half[i]);
  }
}
template <class U, class Narrow, class Prefetch>
void half_kernel(int vectors, std::int64_t steps, Narrow narrow, U const* wide, tile_sums<sum_of<U>> const& sums,
                 Prefetch soon) {
  if (vectors == 2) return half_kernel<U, 1>(steps, narrow, wide, sums, soon);
  half_kernel<U, 2>(steps, narrow, wide, sums, soon);
}
#endif

/// The rows that a micro kernel for `rows` of them computes: the next of 1, 2, 4 and 8.
constexpr int kernel_rows(std::int64_t rows) { return rows > 4 ? most_narrow : rows > 2 ? 4 : static_cast<int>(rows); }

/// Calls f(rows, vectors) with the two as constants.
template <class Function> void with_shape(std::int64_t rows, int vectors, Function const& f) {
  auto const across = [&](auto high) {
    switch (vectors) {
      case 1: return f(high, std::integral_constant<int, 1>());
      case 2: return f(high, std::integral_constant<int, 2>());
      default: return f(high, std::integral_constant<int, 3>());
    }
  };
  switch (kernel_rows(rows)) {
    case 1: return across(std::integral_constant<int, 1>());
    case 2: return across(std::integral_constant<int, 2>());
    case 4: return across(std::integral_constant<int, 4>());
    default: return across(std::integral_constant<int, most_narrow>());
  }
}

/// The same on a packed panel, for `rows` rows and `vectors` registers across; kernel_rows(rows) rows are read, computed
/// and stored.
template <class U, class Narrow, class Prefetch = no_prefetch>
void micro_kernel(std::int64_t rows, int vectors, std::int64_t steps, Narrow narrow, U const* wide,
                  tile_sums<sum_of<U>> const& sums, Prefetch soon = {}) {
  with_shape(rows, vectors,
             [&]<int Rows, int Vectors>(std::integral_constant<int, Rows>, std::integral_constant<int, Vectors>) {
               micro_kernel<U, Rows, Vectors>(steps, narrow, packed_panel<U, Vectors>{wide}, sums, soon);
             });
}

/// The same on a wide operand as it lies in memory: rows of `stride` values, of which there are `present`.
template <class U, class T, class Prefetch>
void micro_kernel_in_place(std::int64_t rows, int vectors, std::int64_t steps, strided_rows<U> narrow, T const* wide,
                           std::int64_t stride, std::int64_t present, tile_sums<sum_of<U>> const& sums, Prefetch soon) {
  with_shape(
      rows, vectors,
      [&]<int Rows, int Vectors>(std::integral_constant<int, Rows>, std::integral_constant<int, Vectors>) {
        micro_kernel<U, Rows, Vectors>(steps, narrow, rows_in_place<U, T, Vectors>{wide, stride, present}, sums, soon);
      });
}

/// The same of most_narrow rows, which packs the wide operand into `panel`.
template <class U, class T>
void micro_kernel_packing(int vectors, std::int64_t steps, strided_rows<U> narrow, T const* wide, std::int64_t stride,
                          std::int64_t present, U* panel, tile_sums<sum_of<U>> const& sums) {
  with_shape(most_narrow, vectors,
             [&]<int Rows, int Vectors>(std::integral_constant<int, Rows>, std::integral_constant<int, Vectors>) {
               if constexpr (Rows == most_narrow)
                 micro_kernel<U, Rows, Vectors>(steps, narrow,
                                                rows_being_packed<U, T, Vectors>{{wide, stride, present}, panel}, sums,
                                                no_prefetch{});
             });
}

/// sums(j) += chain over Steps steps of one narrow row times rows as they lie, for columns [first, cols), a whole number of
/// registers, of which Vectors go together; returns where the rest begins. Such a sweep along few rows is read fastest.
template <class U, int Steps, int Vectors, class T>
std::int64_t sweep(strided_rows<U> narrow, rows_in_place<U, T, Vectors> wide, std::int64_t first, std::int64_t cols,
                   sum_of<U>* sums, bool resume) {
  using S = sum_of<U>;
  constexpr int lanes = simd::lanes<U>;
  constexpr std::size_t deep = Steps, across = Vectors;
  simd::vec<U> left[deep];
  for (int k = 0; k < Steps; ++k, narrow.advance()) left[k] = simd::broadcast(narrow.at(0));
  for (; first + Vectors * lanes <= cols; first += Vectors * lanes) {
    auto rows = wide;
    rows.row += first;
    simd::vec<S> sum[across];
    MOIETY_UNROLL(2)
    for (int j = 0; j < Vectors; ++j) sum[j] = resume ? simd::load(sums + first + j * lanes) : simd::zero<S>();
    MOIETY_UNROLL(8)
    for (int k = 0; k < Steps; ++k, rows.advance()) {
      simd::vec<U> right[across];
      rows.load(right);
      MOIETY_UNROLL(2)
      for (int j = 0; j < Vectors; ++j) sum[j] = simd::fma(left[k], right[j], sum[j]);
    }
    MOIETY_UNROLL(2)
    for (int j = 0; j < Vectors; ++j) simd::store(sums + first + j * lanes, sum[j]);
  }
  return first;
}

/// Columns that a transposing kernel will need, one after another in memory. Memory gives more where it is asked for in the
/// order of its addresses than for a line of every column in turn.
template <class B> struct upcoming_columns {
  B const* first = nullptr;
  std::int64_t stride = 0, left = 0;  // columns
  std::int64_t asked = 0;             // values of the first

  /// Asks the cache for the next lines; columns have `count` values.
  [[gnu::always_inline]] void ask(int lines, std::int64_t count) {
    if (left <= 0) return;
    constexpr auto line = static_cast<std::int64_t>(64 / sizeof(B));
    MOIETY_UNROLL(16)
    for (int i = 0; i < lines; ++i) __builtin_prefetch(first + asked + i * line, 0, 2);
    asked += lines * line;
    if (asked >= count) first += stride, asked = 0, --left;
  }
};

/// to(i, j) = chain over `count` values of k of rows[i](k) * columns[j](k), for the lanes of one register: both operands
/// lie with their steps side by side, and the wide one is turned in registers. A holds units as they are.
template <class U, int Rows, class A, class B>
void transposing_kernel(std::int64_t count, A const* const* rows, B const* const* columns, sum_of<U>* to,
                        std::int64_t to_stride, std::array<upcoming_columns<B>, 2> soon = {}) {
  using S = sum_of<U>;
  static_assert(sizeof(A) * values_per_unit<U> == sizeof(U));
  constexpr std::int64_t lanes = simd::lanes<U>, values = lanes * values_per_unit<U>;
  constexpr int lines = static_cast<int>(lanes * values) * static_cast<int>(sizeof(B)) / 64;  // of a square
  constexpr std::size_t high = Rows;
  simd::vec<S> sum[high];
  MOIETY_UNROLL(8)
  for (int i = 0; i < Rows; ++i) sum[i] = simd::zero<S>();
  simd::square<U> square;
  auto const add = [&](int i, U value, simd::vec<U> wide) { sum[i] = simd::fma(simd::broadcast(value), wide, sum[i]); };
  std::int64_t k = 0;
  for (; k + values <= count; k += values) {
    MOIETY_UNROLL(16)
    for (std::int64_t j = 0; j < lanes; ++j) square[j] = simd::load_as<U>(columns[j] + k);
    for (upcoming_columns<B>& s : soon) s.ask(lines, count);
    simd::transpose<U>(square);
    MOIETY_UNROLL(16)
    for (std::int64_t step = 0; step < lanes; ++step) {
      MOIETY_UNROLL(8)
      for (int i = 0; i < Rows; ++i) {
        U value;
        std::memcpy(static_cast<void*>(&value), rows[i] + k + step * values_per_unit<U>, sizeof value);
        add(i, value, square[step]);
      }
    }
  }
  if (k < count) {
    U rest[high][static_cast<std::size_t>(lanes)];
    for (int i = 0; i < Rows; ++i) simd::store<U>(rest[i], simd::load_first<U>(rows[i] + k, count - k));
    for (std::int64_t j = 0; j < lanes; ++j) square[j] = simd::load_first<U>(columns[j] + k, count - k);
    simd::transpose<U>(square);
    for (std::int64_t step = 0; step < steps_of<U>(count - k); ++step)
      for (int i = 0; i < Rows; ++i) add(i, rest[i][step], square[step]);
  }
  MOIETY_UNROLL(8)
  for (int i = 0; i < Rows; ++i) simd::store(to + i * to_stride, sum[i]);
}

}  // namespace moiety::inline MOIETY_ABI::kernels::host_gemm
