// SPDX-License-Identifier: Apache-2.0
// The host body of build_permutation: count, scan, place, a few nanoseconds a row. Many tokens are cut into one block a
// thread. Each block counts all tokens for itself, which is cheap beside placing and needs no memory that outlives a task;
// its rows stand behind those of the blocks before it, so the result is that of one block.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/host/scratch.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

namespace detail {

/// Fewer rows are placed sooner than a second thread has begun.
inline constexpr std::int64_t rows_for_threads = 100'000;

template <class S>
void count_rows(routing_view<S> const& routes, std::int64_t begin, std::int64_t end, std::int64_t* counts) {
  for (std::int64_t t = begin; t < end; ++t)
    for (std::int64_t j = 0; j < routes.slots; ++j)
      if (routes.has_row(t, j)) ++counts[routes.expert(t, j)];
}

/// next[e] is the row that the next slot of expert e gets.
template <class S>
void place_rows(routing_view<S> const& routes, std::int64_t begin, std::int64_t end, std::int64_t* next,
                permutation_view const& out) {
  for (std::int64_t t = begin; t < end; ++t)
    for (std::int64_t j = 0; j < routes.slots; ++j) {
      std::int32_t row = -1;
      if (routes.has_row(t, j)) {
        row = static_cast<std::int32_t>(next[routes.expert(t, j)]++);
        out.source_tokens[row] = static_cast<std::int32_t>(t);
      }
      out.positions[t * routes.slots + j] = row;
    }
}

}  // namespace detail

template <class S>
void build_permutation(host_engine& engine, routing_view<S> const& routes, permutation_view const& out) {
  std::int64_t const k = routes.slots, tokens = routes.tokens;
  moiety::detail::check_rows(tokens, k);
  std::int64_t const blocks = tokens * k < detail::rows_for_threads ? 1 : engine.threads();
  engine.parallel(blocks, [&](std::int64_t block, int worker) {
    std::int64_t const begin = tokens * block / blocks, end = tokens * (block + 1) / blocks;
    scratch_memory scratch(engine.scratch(worker));
    auto const next = scratch.take<std::int64_t>(routes.experts), counts = scratch.take<std::int64_t>(routes.experts);
    detail::count_rows(routes, 0, begin, next.data());
    std::copy(next.begin(), next.end(), counts.begin());
    detail::count_rows(routes, begin, tokens, counts.data());
    std::int64_t row = 0;
    for (std::size_t e = 0; e < next.size(); row += counts[e++]) {
      next[e] += row;
      if (block == 0) out.starts[e] = row;
    }
    if (block == 0) out.starts[routes.experts] = row;
    detail::place_rows(routes, begin, end, next.data(), out);
  });
}

}  // namespace kernels
}  // namespace moiety
