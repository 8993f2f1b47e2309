// SPDX-License-Identifier: Apache-2.0
// The host body of gather: token by token, so that x is read once and each of its rows is copied while it is in a cache.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/backend/stream.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

template <scalar T>
void gather(host_engine& engine, permutation_view const& order, matrix_view<T const> x, matrix_view<T> out,
            stores how) {
  engine.for_blocks(x.rows(), 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t j = 0; j < order.slots; ++j)
        if (std::int64_t const row = order.row_of(t, j); row >= 0) write_row(out.row(row), x.row(t), x.cols(), how);
    finish_stores(how);
  });
}

template <scalar T>
void gather(host_engine& engine, permutation_view const& order, matrix_view<T const> x, matrix_view<T> out) {
  gather(engine, order, x, out, stores_for(order.rows() * x.cols() * static_cast<std::int64_t>(sizeof(T))));
}

}  // namespace kernels
}  // namespace moiety
