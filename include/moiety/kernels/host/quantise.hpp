// SPDX-License-Identifier: Apache-2.0
// The host bodies of kernels/quantise.hpp. Of matrices that lie as their transposes a task has 128 outputs, whose values lie
// side by side in every row, so that rows are read a cache line at a time, and turns squares of 128 × 128 values.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/host/simd.hpp>
#include <moiety/kernels/quantise.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moiety::inline MOIETY_ABI::kernels {

namespace host_quantise {

inline constexpr std::int64_t side = 128;  // outputs of a task

/// q s of a value, e4m3(value / s) s, which no value of those that share s exceeds: without branches, so that loops of it take
/// vectors. Adding 2²⁰ times a power of two just below leaves three bits behind the point of it, halves going to even.
inline bf16 rounded(float value, float scale, float inverse) {
  using moiety::detail::bit_cast;
  constexpr std::uint32_t least_normal = 0x3c800000u, exponent_of = 0x7f800000u;  // 2⁻⁶, below which steps are 2⁻⁹
  auto const bits = bit_cast<std::uint32_t>(value);
  float const magnitude = bit_cast<float>(bits & 0x7fffffffu) * inverse;
  std::uint32_t const below = bit_cast<std::uint32_t>(magnitude) & exponent_of;
  float const aligned = bit_cast<float>((below < least_normal ? least_normal : below) + (20u << 23));
  auto const nearest = bit_cast<std::uint32_t>(((magnitude + aligned) - aligned) * scale);
  bf16 result;
  result.bits = static_cast<std::uint16_t>(
      ((bits & exponent_of) == exponent_of ? 0x7fc00000u : nearest | (bits & 0x80000000u)) >> 16);
  return result;
}

/// Values side by side, each with a scale of its own.
template <class T>
void round_columns(T const* from, float const* scale, float const* inverse, std::int64_t count, bf16* to) {
  for (std::int64_t c = 0; c < count; ++c) to[c] = rounded(static_cast<float>(from[c]), scale[c], inverse[c]);
}

/// The transpose of a square: pairs of rows are turned as units of 32 bits.
inline void turn(bf16 const (&from)[side][side], bf16 (&to)[side][side]) {
  constexpr int lanes = simd::lanes<simd::bf16_pair>;
  static_assert(side % (2 * lanes) == 0);
  for (std::int64_t row = 0; row < side; row += 2 * lanes)
    for (std::int64_t col = 0; col < side; col += lanes) {
      simd::square<simd::bf16_pair> pairs;
      for (int i = 0; i < lanes; ++i)
        pairs[i] = simd::load_zipped(from[row + 2 * i] + col, from[row + 2 * i + 1] + col);
      simd::transpose<simd::bf16_pair>(pairs);
      for (int i = 0; i < lanes; ++i) std::memcpy(static_cast<void*>(to[col + i] + row), &pairs[i], sizeof pairs[i]);
    }
}

/// The columns of M parts of n side by side, cut into those that share scales: f(first, end).
template <class Scaling, class Function> void for_scales(std::int64_t columns, Function const& f) {
  std::int64_t const step = Scaling::columns == 0 ? columns : Scaling::columns;
  for (std::int64_t first = 0; first < columns; first += step) f(first, std::min(first + step, columns));
}

/// Columns first … end − 1 as pieces of single parts of n: f(part, column of the part, columns, column of all).
template <class Function> void for_pieces(std::int64_t first, std::int64_t end, std::int64_t n, Function const& f) {
  while (first < end) {
    std::int64_t const part = first / n, count = std::min(end, (part + 1) * n) - first;
    f(static_cast<std::size_t>(part), first - part * n, count, first);
    first += count;
  }
}

/// `count` rows that share scales, of M parts of n: row(m, i) is where part m of row i begins.
template <class Scaling, class Row>
void quantise(Row const& row, std::int64_t count, std::int64_t parts, std::int64_t n, bf16* to) {
  std::int64_t const columns = parts * n;
  for_scales<Scaling>(columns, [&](std::int64_t first, std::int64_t end) {
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < count; ++i)
      for_pieces(first, end, n, [&](std::size_t part, std::int64_t at, std::int64_t width, std::int64_t) {
        auto const* const from = row(part, i) + at;
        for (std::int64_t c = 0; c < width; ++c) largest = larger_magnitude(largest, static_cast<float>(from[c]));
      });
    float const scale = quantising_scale(largest), inverse = 1 / scale;
    for (std::int64_t i = 0; i < count; ++i)
      for_pieces(first, end, n, [&](std::size_t part, std::int64_t at, std::int64_t width, std::int64_t column) {
        auto const* const from = row(part, i) + at;
        bf16* const out = to + i * columns + column;
        for (std::int64_t c = 0; c < width; ++c) out[c] = rounded(static_cast<float>(from[c]), scale, inverse);
      });
  });
}

/// `count` outputs of matrices that lie as their transposes: row(m, k) is where their values of k begin, in part m.
template <class Scaling, class Row>
void quantise_turned(Row const& row, std::int64_t count, std::int64_t parts, std::int64_t n, bf16* to) {
  std::int64_t const columns = parts * n;
  bf16 square[side][side] = {}, turned[side][side];
  for_scales<Scaling>(columns, [&](std::int64_t first, std::int64_t end) {
    std::uint32_t largest[side] = {};
    for_pieces(first, end, n, [&](std::size_t part, std::int64_t at, std::int64_t width, std::int64_t) {
      for (std::int64_t k = at; k < at + width; ++k)
        for (std::int64_t c = 0; c < count; ++c)
          largest[c] = larger_magnitude(largest[c], static_cast<float>(row(part, k)[c]));
    });
    if (Scaling::outputs > 1) std::fill_n(largest, count, *std::max_element(largest, largest + count));
    float scale[side], inverse[side];
    for (std::int64_t c = 0; c < count; ++c) inverse[c] = 1 / (scale[c] = quantising_scale(largest[c]));
    for (; first < end; first += side) {
      std::int64_t const depth = std::min(side, end - first);
      for_pieces(first, first + depth, n, [&](std::size_t part, std::int64_t at, std::int64_t width, std::int64_t k) {
        for (std::int64_t i = 0; i < width; ++i) {
          round_columns(row(part, at + i), scale, inverse, count, square[k - first + i]);
        }
      });
      turn(square, turned);
      for (std::int64_t c = 0; c < count; ++c)
        std::memcpy(static_cast<void*>(to + c * columns + first), turned[c],
                    static_cast<std::size_t>(depth) * sizeof(bf16));
    }
  });
}

}  // namespace host_quantise

template <class Scaling, class T, std::size_t M>
void quantise_rows(host_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t,
                   std::array<rows_of<T>, M> const& from, std::int64_t n,
                   quantised_operand<host_engine, Scaling> const& to) {
  constexpr auto parts = static_cast<std::int64_t>(M);
  engine.for_blocks(offsets[groups] - offsets[0], 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = offsets[0] + begin; r < offsets[0] + end; ++r)
      host_quantise::quantise<Scaling>([&](std::size_t m, std::int64_t) { return from[m].row(r); }, 1, parts, n,
                                       to.values + r * parts * n);
  });
}

template <class Scaling, class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<host_engine, Scaling> const& to) {
  constexpr auto parts = static_cast<std::int64_t>(M);
  std::int64_t const blocks = rows_of_scales<Scaling>(n);
  engine.for_blocks(groups * blocks, 16 / Scaling::outputs + 1, [&](std::int64_t task, std::int64_t end, int) {
    for (; task < end; ++task) {
      std::int64_t const group = task / blocks, first = task % blocks * Scaling::outputs;
      host_quantise::quantise<Scaling>(
          [&](std::size_t m, std::int64_t i) { return from[m].group(group) + (first + i) * from[m].row_stride; },
          std::min(Scaling::outputs, n - first), parts, k, to.values + (group * n + first) * parts * k);
    }
  });
}

template <class Scaling, class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_operand<host_engine, Scaling> const& to) {
  constexpr auto parts = static_cast<std::int64_t>(M);
  constexpr std::int64_t side = host_quantise::side;
  std::int64_t const blocks = (n + side - 1) / side;
  engine.parallel(groups * blocks, [&](std::int64_t task, int) {
    std::int64_t const group = task / blocks, first = task % blocks * side;
    host_quantise::quantise_turned<Scaling>(
        [&](std::size_t m, std::int64_t i) { return from[m].lying().group(group) + i * from[m].row_stride + first; },
        std::min(side, n - first), parts, k, to.values + (group * n + first) * parts * k);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
