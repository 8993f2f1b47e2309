// SPDX-License-Identifier: Apache-2.0
// The host bodies of kernels/quantise.hpp. Of matrices that lie as their transposes a task has 64 of n, whose values lie side
// by side in every row of k, so that rows are read a cache line at a time.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/quantise.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace host_quantise {

/// One row of values that lie side by side in each of several parts, [n] each.
template <class T, std::size_t M>
void quantise_row(std::array<T const*, M> const& parts, std::int64_t n, e4m3* to, float& scale) {
  std::uint32_t largest = 0;
  for (T const* part : parts)
    for (std::int64_t i = 0; i < n; ++i) largest = larger_magnitude(largest, static_cast<float>(part[i]));
  scale = quantising_scale(largest);
  float const inverse = 1 / scale;
  for (T const* part : parts)
    for (std::int64_t i = 0; i < n; ++i) *to++ = quantised(static_cast<float>(part[i]), inverse);
}

inline constexpr std::int64_t columns_of_task = 64;

/// Outputs first … first + count − 1 of one group, whose values lie in columns of M matrices of k rows.
template <class T, std::size_t M>
void quantise_columns(std::array<T const*, M> const& parts, std::array<std::int64_t, M> const& strides, std::int64_t k,
                      std::int64_t count, e4m3* to, std::int64_t stride, float* scales) {
  constexpr std::int64_t side = columns_of_task;
  float inverse[side];
  std::uint32_t largest[side] = {};
  for (std::size_t m = 0; m < M; ++m)
    for (std::int64_t i = 0; i < k; ++i)
      for (std::int64_t c = 0; c < count; ++c)
        largest[c] = larger_magnitude(largest[c], static_cast<float>(parts[m][i * strides[m] + c]));
  for (std::int64_t c = 0; c < count; ++c) {
    scales[c] = quantising_scale(largest[c]);
    inverse[c] = 1 / scales[c];
  }
  e4m3 square[side][side];
  for (std::size_t m = 0; m < M; ++m, to += k)
    for (std::int64_t first = 0; first < k; first += side) {
      std::int64_t const rows = std::min(side, k - first);
      for (std::int64_t i = 0; i < rows; ++i) {
        T const* const from = parts[m] + (first + i) * strides[m];
        for (std::int64_t c = 0; c < count; ++c) square[i][c] = quantised(static_cast<float>(from[c]), inverse[c]);
      }
      for (std::int64_t c = 0; c < count; ++c)
        for (std::int64_t i = 0; i < rows; ++i) to[c * stride + first + i] = square[i][c];
    }
}

}  // namespace host_quantise

template <class T, std::size_t M>
void quantise_rows(host_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t,
                   std::array<rows_of<T>, M> const& from, std::int64_t n, quantised_rows const& to) {
  std::int64_t const first = offsets[0], stride = quantised_stride(static_cast<std::int64_t>(M) * n);
  engine.for_blocks(offsets[groups] - first, 16, [&](std::int64_t row, std::int64_t last, int) {
    for (row += first, last += first; row < last; ++row) {
      std::array<T const*, M> parts;
      for (std::size_t m = 0; m < M; ++m) parts[m] = from[m].row(row);
      host_quantise::quantise_row(parts, n, to.values + row * stride, to.scales[row]);
    }
  });
}

template <class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<grouped_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to) {
  std::int64_t const stride = quantised_stride(static_cast<std::int64_t>(M) * k);
  engine.for_blocks(groups * n, 16, [&](std::int64_t row, std::int64_t last, int) {
    for (; row < last; ++row) {
      std::array<T const*, M> parts;
      for (std::size_t m = 0; m < M; ++m) parts[m] = from[m].group(row / n) + row % n * from[m].row_stride;
      host_quantise::quantise_row(parts, k, to.values + row * stride, to.scales[row]);
    }
  });
}

template <class T, std::size_t M>
void quantise_matrices(host_engine& engine, std::int64_t groups, std::array<transposed_matrix<T const>, M> const& from,
                       std::int64_t n, std::int64_t k, quantised_matrix const& to) {
  constexpr std::int64_t most = host_quantise::columns_of_task;
  std::int64_t const stride = quantised_stride(static_cast<std::int64_t>(M) * k), blocks = (n + most - 1) / most;
  engine.parallel(groups * blocks, [&](std::int64_t task, int) {
    std::int64_t const group = task / blocks, first = task % blocks * most, row = group * n + first;
    std::array<T const*, M> parts;
    std::array<std::int64_t, M> strides;
    for (std::size_t m = 0; m < M; ++m) {
      parts[m] = from[m].lying().group(group) + first;
      strides[m] = from[m].row_stride;
    }
    host_quantise::quantise_columns(parts, strides, k, std::min(most, n - first), to.values + row * stride, stride,
                                    to.scales + row);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
