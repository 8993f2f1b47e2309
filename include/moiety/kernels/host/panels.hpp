// SPDX-License-Identifier: Apache-2.0
// Packing of operands for the micro kernel: wide ones into panels of one to three registers, narrow ones into strips.
//
//   pack_across(rows)       panels whose lanes are columns: step k of a panel lies in the rows of k
//   pack_along(rows)        panels whose lanes are rows: each row's steps lie side by side in memory, and are transposed
//   pack_strips(rows)       strips of most_narrow columns
//
// Panels are [panel][step][lane], strips [strip][step][column]; what is missing at the edges is zero.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/host/micro_kernel.hpp>
#include <moiety/kernels/host/simd.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moiety::inline MOIETY_ABI::kernels::host_gemm {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// A wide operand of some width, cut into panels of one to `most` registers that differ by at most one.
template <class U> struct panel_cut {
  std::int64_t count, base, extra;

  explicit constexpr panel_cut(std::int64_t width, std::int64_t most = most_vectors) : count(0), base(0), extra(0) {
    std::int64_t const vectors = ceil_div(width, simd::lanes<U>);
    count = ceil_div(vectors, most);
    base = count > 0 ? vectors / count : 0;
    extra = vectors - base * count;
  }
  constexpr int vectors(std::int64_t p) const { return static_cast<int>(base + (p < extra ? 1 : 0)); }
  constexpr std::int64_t width(std::int64_t p) const { return vectors(p) * simd::lanes<U>; }
  constexpr std::int64_t first(std::int64_t p) const { return (p * base + std::min(p, extra)) * simd::lanes<U>; }
  constexpr std::int64_t lanes() const { return first(count); }
};

/// A step in rows of memory, column by column: one row, or two for pairs, of which the second may be missing.
template <class U, class T> struct row_step {
  T const* row = nullptr;
  T const* next = nullptr;

  /// Columns col, col + 1, … of `cols`: one register, zeros past the end.
  [[gnu::always_inline]] simd::vec<U> load(std::int64_t col, std::int64_t cols) const {
    if (col + simd::lanes < U >> cols) return load_first(col, std::max(cols - col, std::int64_t{0}));
    if constexpr (std::same_as<U, bf16_pair>)
      return simd::load_zipped(row + col, next != nullptr ? next + col : nullptr);
    else
      return simd::load_as<U>(row + col);
  }
  [[gnu::always_inline]] void prefetch(std::int64_t col) const {
    __builtin_prefetch(row + col);
    if constexpr (std::same_as<U, bf16_pair>) __builtin_prefetch(next != nullptr ? next + col : row + col);
  }

 private:
  simd::vec<U> load_first(std::int64_t col, std::int64_t count) const {
    if constexpr (std::same_as<U, bf16_pair>) {
      bf16 copy[2][static_cast<std::size_t>(simd::lanes<U>)] = {};
      std::copy_n(row + col, count, copy[0]);
      if (next != nullptr) std::copy_n(next + col, count, copy[1]);
      return simd::load_zipped(copy[0], copy[1]);
    } else {
      return simd::load_first<U>(row + col, count);
    }
  }
};

/// Step s of rows that rows.row(k) gives, k in [0, count).
template <class U, class Rows> auto step_of(Rows const& rows, std::int64_t s, std::int64_t count) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(rows.row(s))>>;
  if constexpr (std::same_as<U, bf16_pair>)
    return row_step<U, T>{rows.row(2 * s), 2 * s + 1 < count ? rows.row(2 * s + 1) : nullptr};
  else
    return row_step<U, T>{rows.row(s)};
}

/// Steps that packing asks the cache for ahead of time: a block's rows lie in different pages, where no hardware does.
template <class U> inline constexpr std::int64_t prefetch_steps = 4 * values_per_unit<U>;

/// rows.row(k) gives the row of k, k in [0, count): `cols` values are packed.
template <class U, class Rows> void pack_across(Rows const& rows, std::int64_t count, std::int64_t cols, U* to) {
  constexpr std::int64_t lanes = simd::lanes<U>;
  panel_cut<U> const cut(cols);
  std::int64_t const steps = steps_of<U>(count);
  for (std::int64_t s = 0; s < steps; ++s) {
    auto const now = step_of<U>(rows, s, count),
               soon = step_of<U>(rows, std::min(s + prefetch_steps<U>, steps - 1), count);
    for (std::int64_t p = 0; p < cut.count; ++p) {
      U* const out = to + cut.first(p) * steps + s * cut.width(p);
      for (std::int64_t v = 0; v < cut.width(p); v += lanes) {
        std::int64_t const col = cut.first(p) + v;
        soon.prefetch(std::min(col, cols - 1));
        simd::store<U>(out + v, now.load(col, cols));
      }
    }
  }
}

/// rows.row(i) gives row i, i in [0, height), whose values [0, count) are packed.
template <class U, class Rows> void pack_along(Rows const& rows, std::int64_t height, std::int64_t count, U* to) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(rows.row(height))>>;
  constexpr std::int64_t lanes = simd::lanes<U>, values = lanes * values_per_unit<U>;
  panel_cut<U> const cut(height);
  std::int64_t const steps = steps_of<U>(count);
  for (std::int64_t p = 0; p < cut.count; ++p)
    for (int v = 0; v < cut.vectors(p); ++v) {
      std::int64_t const first = cut.first(p) + v * lanes, present = std::min(lanes, height - first);
      T const* from[static_cast<std::size_t>(lanes)];
      for (std::int64_t i = 0; i < lanes; ++i) from[i] = rows.row(first + std::min(i, present - 1));
      U* const column = to + cut.first(p) * steps + v * lanes;
      simd::square<U> square;
      for (std::int64_t s = 0; s < steps; s += lanes) {
        std::int64_t const k = s * values_per_unit<U>;
        for (std::int64_t i = 0; i < lanes; ++i)
          square[i] = k + values <= count ? simd::load_as<U>(from[i] + k) : simd::load_first<U>(from[i] + k, count - k);
        simd::transpose<U>(square);
        for (std::int64_t i = 0; i < std::min(lanes, steps - s); ++i)
          simd::store<U>(column + (s + i) * cut.width(p), square[i]);
      }
    }
}

/// Distance between packed strips: off a power of two, which would share one set of the cache.
template <class U> constexpr std::int64_t strip_stride(std::int64_t steps) {
  return most_narrow * steps + 64 / static_cast<std::int64_t>(sizeof(U));
}

/// Units that packed strips take, for `cols` columns.
template <class U> constexpr std::int64_t strip_units(std::int64_t steps, std::int64_t cols) {
  return round_up(cols, std::max<std::int64_t>(simd::lanes<U>, most_narrow)) / most_narrow * strip_stride<U>(steps);
}

/// As pack_across, in strips.
template <class U, class Rows> void pack_strips(Rows const& rows, std::int64_t count, std::int64_t cols, U* to) {
  constexpr std::int64_t lanes = simd::lanes<U>, piece = std::min<std::int64_t>(most_narrow, lanes);
  std::int64_t const steps = steps_of<U>(count);
  for (std::int64_t s = 0; s < steps; ++s) {
    auto const now = step_of<U>(rows, s, count),
               soon = step_of<U>(rows, std::min(s + prefetch_steps<U>, steps - 1), count);
    for (std::int64_t col = 0; col < round_up(cols, most_narrow); col += lanes) {
      soon.prefetch(std::min(col, cols - 1));
      U run[static_cast<std::size_t>(lanes)];
      simd::store<U>(run, now.load(col, cols));
      MOIETY_UNROLL(4)
      for (std::int64_t i = 0; i < lanes; i += piece)
        std::memcpy(static_cast<void*>(to + (col + i) / most_narrow * strip_stride<U>(steps) + s * most_narrow +
                                       (col + i) % most_narrow),
                    run + i, static_cast<std::size_t>(piece) * sizeof(U));
    }
  }
}

}  // namespace moiety::inline MOIETY_ABI::kernels::host_gemm
