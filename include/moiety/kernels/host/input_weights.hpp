// SPDX-License-Identifier: Apache-2.0
// The host bodies of gather_weighted and input_weight_gradients, token by token.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/backend/host.hpp>
#include <moiety/batch/lanes.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {

/// ⟨a, b⟩ in the order of a row: 32 lanes, folded in halves.
template <scalar T> sum_t<T> dot_of(T const* a, T const* b, std::int64_t size) {
  using S = sum_t<T>;
  S lane[32] = {};
  std::int64_t const whole = size / 32 * 32;
  for (std::int64_t i = 0; i < whole; i += 32) {
    MOIETY_LANES
    for (std::int64_t l = 0; l < 32; ++l) lane[l] = fma(static_cast<S>(a[i + l]), static_cast<S>(b[i + l]), lane[l]);
  }
  for (std::int64_t l = 0; l < size - whole; ++l)
    lane[l] = fma(static_cast<S>(a[whole + l]), static_cast<S>(b[whole + l]), lane[l]);
  return moiety::detail::halved(lane, [](S left, S right) { return left + right; });
}

/// f(token, slot, row) for every slot; row −1 where it has none.
template <class F> void for_slots(host_engine& engine, permutation_view const& order, F const& f) {
  engine.for_blocks(order.tokens, 16, [&](std::int64_t t, std::int64_t end, int) {
    for (; t < end; ++t)
      for (std::int64_t j = 0; j < order.slots; ++j) f(t, j, std::int64_t{order.row_of(t, j)});
  });
}

}  // namespace detail

template <scalar T>
void gather_weighted(host_engine& engine, permutation_view const& order, sum_t<T> const* weights,
                     matrix_view<T const> x, matrix_view<T> out) {
  using S = sum_t<T>;
  detail::for_slots(engine, order, [&](std::int64_t t, std::int64_t j, std::int64_t row) {
    if (row < 0) return;
    S const weight = weights[t * order.slots + j];
    T const* const from = x.row(t);
    T* const to = out.row(row);
    for (std::int64_t c = 0; c < x.cols(); ++c) to[c] = static_cast<T>(weight * static_cast<S>(from[c]));
  });
}

template <scalar T>
void input_weight_gradients(host_engine& engine, permutation_view const& order, matrix_view<T const> rows,
                            matrix_view<T const> x, sum_t<T>* by_slot) {
  detail::for_slots(engine, order, [&](std::int64_t t, std::int64_t j, std::int64_t row) {
    by_slot[t * order.slots + j] = row < 0 ? sum_t<T>{0} : detail::dot_of(rows.row(row), x.row(t), x.cols());
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
