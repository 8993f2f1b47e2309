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

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

namespace detail {

/// A row that a token sums.
template <scalar T> struct summand {
  T const* row = nullptr;
  sum_t<T> weight = 1;
};

/// Columns [first, first + Registers · lanes), whose sums stay in registers; returns where the next begin.
template <int Registers, scalar T, class Out>
std::int64_t combine_columns(std::span<summand<T> const> summands, sum_t<T> const* base, std::int64_t first, Out* to) {
  using S = sum_t<T>;
  constexpr int lanes = simd::lanes<S>;
  simd::vec<S> sums[static_cast<std::size_t>(Registers)] = {};
  if (base != nullptr) {
    MOIETY_UNROLL(8)
    for (int i = 0; i < Registers; ++i) sums[i] = simd::load(base + first + i * lanes);
  }
  for (summand<T> const& from : summands) {
    auto const weight = simd::broadcast(from.weight);
    MOIETY_UNROLL(8)
    for (int i = 0; i < Registers; ++i)
      sums[i] = simd::fma(weight, simd::load_as<S>(from.row + first + i * lanes), sums[i]);
  }
  if constexpr (std::same_as<Out, S>) {
    MOIETY_UNROLL(8)
    for (int i = 0; i < Registers; ++i) simd::store(to + first + i * lanes, sums[i]);
  } else {
    alignas(line_bytes) S values[static_cast<std::size_t>(Registers * lanes)];
    MOIETY_UNROLL(8)
    for (int i = 0; i < Registers; ++i) simd::store(values + i * lanes, sums[i]);
    for (int i = 0; i < Registers * lanes; ++i) to[first + i] = static_cast<Out>(values[i]);
  }
  return first + Registers * lanes;
}

/// The row of one token.
template <scalar T, class Out>
void combine_row(std::span<summand<T> const> summands, sum_t<T> const* base, std::int64_t cols, Out* to) {
  using S = sum_t<T>;
  constexpr std::int64_t lanes = simd::lanes<S>;
  std::int64_t c = 0;
  while (c + 8 * lanes <= cols) c = combine_columns<8>(summands, base, c, to);
  while (c + lanes <= cols) c = combine_columns<1>(summands, base, c, to);
  for (; c < cols; ++c) {
    S sum = base != nullptr ? base[c] : S{0};
    for (summand<T> const& from : summands) sum = fma(from.weight, static_cast<S>(from.row[c]), sum);
    to[c] = static_cast<Out>(sum);
  }
}

template <scalar T, class Out>
void combine_rows(host_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                  sum_t<T> const* weights, sum_t<T> const* base, matrix_view<Out> y, stores how) {
  std::int64_t const k = order.slots, cols = y.cols(), tokens = y.rows();
  engine.for_blocks(tokens, 16, [&](std::int64_t begin, std::int64_t end, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    auto const summands = scratch.take<summand<T>>(k);
    // Memory takes a row at once faster than block by block between reads.
    auto const whole = scratch.take<Out>(how == stores::streamed ? cols : 0);
    for (std::int64_t t = begin; t < end; ++t) {
      std::size_t count = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        std::int64_t const row = order.row_of(t, j);
        if (row >= 0) summands[count++] = {rows.row(row), weights ? weights[t * k + j] : 1};
      }
      Out* const to = how == stores::streamed ? whole.data() : y.row(t);
      combine_row<T>(summands.first(count), base ? base + t * cols : nullptr, cols, to);
      if (to != y.row(t)) write_row<Out>(y.row(t), to, cols, how);
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
