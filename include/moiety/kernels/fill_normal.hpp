// SPDX-License-Identifier: Apache-2.0
// Normal random numbers into a matrix:
//
//   fill_normal(engine, x, deviation, key, stream, first)
//   x(i, j) = deviation · normal(key, stream, first + i · cols + j)     rounded to the sum type, then to the element's
//
//   fill_normal(ctx, x, key, first)      standard normals, the same for a row whatever rows a rank holds
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/core/random.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

namespace kernels {

template <scalar T>
void fill_normal(host_engine& engine, matrix_view<T> x, double deviation, seed key, std::uint64_t stream,
                 std::int64_t first) {
  constexpr std::int64_t grain = 4096;
  engine.for_blocks(x.rows() * x.cols(), grain, [&](std::int64_t begin, std::int64_t end, int) {
    normal_sequence values(key, stream, static_cast<std::uint64_t>(first + begin));
    for (std::int64_t i = begin / x.cols(), j = begin % x.cols(); begin < end; ++i, j = 0)
      for (; j < x.cols() && begin < end; ++j, ++begin)
        x(i, j) = static_cast<T>(static_cast<sum_t<T>>(deviation * values.next()));
  });
}

template <scalar T>
void fill_normal(cuda_engine& engine, matrix_view<T> x, double deviation, seed key, std::uint64_t stream,
                 std::int64_t first);

}  // namespace kernels

template <class Context, scalar T>
void fill_normal(Context& ctx, matrix_view<T> x, seed key, first_row first = first_row{0}) {
  detail::require<data_error>(x.data() != nullptr || x.rows() * x.cols() == 0, "fill_normal was given a null matrix.");
  kernels::fill_normal(ctx.engine(), x, 1, key, 0, first.value * x.cols());
}

template <class Context, class Matrix>
requires requires(Matrix& x) { x.view(); }
void fill_normal(Context& ctx, Matrix& x, seed key, first_row first = first_row{0}) {
  fill_normal(ctx, x.view(), key, first);
}

}  // namespace moiety
