// SPDX-License-Identifier: Apache-2.0
// The host body of build_permutation: count, scan, place, in one thread (a few nanoseconds a row).
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

template <class S> void build_permutation(host_engine&, routing_view<S> const& routes, permutation_view const& out) {
  std::int64_t const k = routes.slots;
  moiety::detail::require<data_error>(routes.tokens <= std::numeric_limits<std::int32_t>::max() / k, routes.tokens,
                                      " tokens of ", k, " slots each do not fit a row index of 32 bits.");
  std::int64_t* const starts = out.starts;
  std::fill_n(starts, routes.experts + 1, 0);
  for (std::int64_t t = 0; t < routes.tokens; ++t)
    if (routes.dispatched(t))
      for (std::int64_t j = 0; j < k; ++j) ++starts[routes.expert(t, j) + 1];
  for (std::int64_t e = 0; e < routes.experts; ++e) starts[e + 1] += starts[e];
  // starts[e] serves as the cursor of expert e while rows are placed, and is shifted back afterwards.
  for (std::int64_t t = 0; t < routes.tokens; ++t)
    for (std::int64_t j = 0; j < k; ++j) {
      std::int32_t row = -1;
      if (routes.dispatched(t)) {
        row = static_cast<std::int32_t>(starts[routes.expert(t, j)]++);
        out.source_tokens[row] = static_cast<std::int32_t>(t);
      }
      out.positions[t * k + j] = row;
    }
  std::copy_backward(starts, starts + routes.experts, starts + routes.experts + 1);
  starts[0] = 0;
}

}  // namespace kernels
}  // namespace moiety
