// SPDX-License-Identifier: Apache-2.0
// The host body of combine.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

template <scalar T>
void combine(host_engine& engine, permutation_view const& order, matrix_view<T const> rows, sum_t<T> const* weights,
             sum_t<T> const* base, matrix_view<T> y) {
  using S = sum_t<T>;
  constexpr std::int64_t piece = 256;  // columns whose sums stay in registers and the nearest cache
  std::int64_t const k = order.slots, cols = y.cols();
  engine.for_blocks(y.rows(), 16, [&](std::int64_t begin, std::int64_t end, int) {
    S sums[piece];
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t first = 0; first < cols; first += piece) {
        std::int64_t const width = std::min(piece, cols - first);
        if (base != nullptr)
          std::copy_n(base + t * cols + first, width, sums);
        else
          std::fill_n(sums, width, S{0});
        for (std::int64_t j = 0; j < k; ++j) {
          std::int64_t const row = order.row_of(t, j);
          if (row < 0) continue;
          T const* const from = rows.row(row) + first;
          S const weight = weights != nullptr ? weights[t * k + j] : S{1};
          for (std::int64_t c = 0; c < width; ++c) sums[c] = fma(weight, static_cast<S>(from[c]), sums[c]);
        }
        T* const to = y.row(t) + first;
        for (std::int64_t c = 0; c < width; ++c) to[c] = static_cast<T>(sums[c]);
      }
  });
}

}  // namespace kernels
}  // namespace moiety
