// SPDX-License-Identifier: Apache-2.0
// Experts that the caller brings in mo::batch{.experts} [T × K], as when a routing is replayed. Weights are computed from
// the scores of this call, with their gradient. A token whose experts are not distinct or not in range is one with too few
// experts: data_error.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/router/selection.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <int K> struct precomputed {
  static constexpr std::string_view name = "precomputed";
  static constexpr int count = K;
  static constexpr bool needs_experts = true;

  template <class Chosen> MOIETY_HD void forward(score_row auto&, token_view const& token, Chosen const& chosen) const {
    if (token.experts != nullptr) detail::choose_listed(token.experts, K, chosen);
  }
};
static_assert(selection<precomputed<2>>);

}  // namespace moiety
