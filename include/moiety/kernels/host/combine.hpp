// SPDX-License-Identifier: Apache-2.0
// The host body of combine: a few registers of one token at a time, over all of its slots.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/backend/stream.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/host/scratch.hpp>
#include <moiety/kernels/host/simd.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

namespace detail {

/// A row that a token sums, and one that the next token will: its lines are asked for in passing.
template <scalar T> struct summand {
  T const* row = nullptr;
  T const* later = nullptr;
  sum_t<T> weight = 1;
};

/// Columns whose sums stay in registers. Few: rows of 4 KiB and more meet in the same lines of the nearest cache.
template <scalar T> inline constexpr int combine_registers = sizeof(T) == 2 ? 8 : 4;
template <scalar T> inline constexpr int combine_block = combine_registers<T>* simd::lanes<sum_t<T>>;

/// Columns [first, first + combine_block).
template <scalar T, class Out>
void combine_block_of(std::span<summand<T> const> summands, sum_t<T> const* base, std::int64_t first, Out* to) {
  using S = sum_t<T>;
  constexpr int registers = combine_registers<T>, lanes = simd::lanes<S>;
  simd::vec<S> sums[static_cast<std::size_t>(registers)] = {};
  if (base != nullptr) {
    MOIETY_UNROLL(8)
    for (int i = 0; i < registers; ++i) sums[i] = simd::load(base + first + i * lanes);
  }
  for (summand<T> const& from : summands) {
    auto const weight = simd::broadcast(from.weight);
    MOIETY_UNROLL(8)
    for (int i = 0; i < registers; ++i) {
      std::int64_t const col = first + i * lanes;
      sums[i] = simd::fma(weight, simd::load_as<S>(from.row + col), sums[i]);
      if (static_cast<std::size_t>(i * lanes) * sizeof(T) % line_bytes == 0) prefetch(from.later + col);
    }
  }
  alignas(line_bytes) S values[static_cast<std::size_t>(combine_block<T>)];
  MOIETY_UNROLL(8)
  for (int i = 0; i < registers; ++i) simd::store(values + i * lanes, sums[i]);
  for (int i = 0; i < combine_block<T>; ++i) to[i] = static_cast<Out>(values[i]);
}

/// Fewer columns.
template <scalar T, class Out>
void combine_rest(std::span<summand<T> const> summands, sum_t<T> const* base, std::int64_t first, std::int64_t count,
                  Out* to) {
  for (std::int64_t c = 0; c < count; ++c) {
    sum_t<T> sum = base != nullptr ? base[first + c] : sum_t<T>{0};
    for (summand<T> const& from : summands) sum = fma(from.weight, static_cast<sum_t<T>>(from.row[first + c]), sum);
    to[c] = static_cast<Out>(sum);
  }
}

/// The row of one token, in blocks that begin with a line of y where there are whole ones.
template <scalar T, class Out>
void combine_row(std::span<summand<T> const> summands, sum_t<T> const* base, std::int64_t cols, Out* y, stores how) {
  alignas(line_bytes) Out block[static_cast<std::size_t>(combine_block<T>)];
  auto const head = static_cast<std::int64_t>(to_next_line(y) / sizeof(Out));
  for (std::int64_t first = 0; first < cols;) {
    std::int64_t const limit = first == 0 && head != 0 ? head : combine_block<T>;
    std::int64_t const width = std::min(limit, cols - first);
    if (width == combine_block<T>)
      combine_block_of(summands, base, first, block);
    else
      combine_rest(summands, base, first, width, block);
    write_row(y + first, block, width, how);
    first += width;
  }
}

template <scalar T, class Out>
void combine_rows(host_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                  sum_t<T> const* weights, sum_t<T> const* base, matrix_view<Out> y, stores how) {
  std::int64_t const k = order.slots, cols = y.cols(), tokens = y.rows();
  engine.for_blocks(tokens, 16, [&](std::int64_t begin, std::int64_t end, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    auto const summands = scratch.take<summand<T>>(k);
    for (std::int64_t t = begin; t < end; ++t) {
      std::size_t count = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        std::int64_t const row = order.row_of(t, j), later = t + 1 < tokens ? order.row_of(t + 1, j) : row;
        if (row < 0) continue;
        summands[count++] = {rows.row(row), rows.row(later < 0 ? row : later), weights ? weights[t * k + j] : 1};
      }
      combine_row<T>(summands.first(count), base ? base + t * cols : nullptr, cols, y.row(t), how);
    }
    finish_stores(how);
  });
}

}  // namespace detail

template <scalar T>
void combine(host_engine& engine, permutation_view const& order, matrix_view<T const> rows, sum_t<T> const* weights,
             sum_t<T> const* base, matrix_view<T> y, stores how) {
  detail::combine_rows<T>(engine, order, rows, weights, base, y, how);
}

template <scalar T>
void combine(host_engine& engine, permutation_view const& order, matrix_view<T const> rows, sum_t<T> const* weights,
             sum_t<T> const* base, matrix_view<T> y) {
  combine(engine, order, rows, weights, base, y,
          stores_for(y.rows() * y.cols() * static_cast<std::int64_t>(sizeof(T))));
}

template <scalar T>
void combine_sums(host_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                  sum_t<T> const* weights, sum_t<T> const* base, matrix_view<sum_t<T>> sums) {
  detail::combine_rows<T>(engine, order, rows, weights, base, sums, stores::cached);
}

}  // namespace kernels
}  // namespace moiety
