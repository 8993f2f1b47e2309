// SPDX-License-Identifier: Apache-2.0
// Hash layers (Roller et al., 2021; the first layers of DeepSeek-V4): the experts of a token are a function of its id.
//
//   mo::layer_options<Spec>{.router = {mo::hash<2>{.table = table, .entries = vocabulary}}}      table [entries × K]
//
// The table lies in memory of the back end and outlives the router; mo::batch{.ids} gives the ids. Weights are those of the
// scores, with their gradient. A token whose id is outside the table, or whose row of it is not of K distinct experts, is
// one with too few experts: data_error.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/router/selection.hpp>

#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <int K> struct hash {
  static constexpr std::string_view name = "hash";
  static constexpr int count = K;
  static constexpr bool needs_ids = true;
  std::int32_t const* table = nullptr;
  std::int64_t entries = 0;

  template <class Chosen> MOIETY_HD void forward(score_row auto&, token_view const& token, Chosen const& chosen) const {
    if (token.id < 0 || token.id >= entries) return;
    detail::choose_listed(table + std::int64_t{token.id} * K, K, chosen);
  }
};
static_assert(selection<hash<2>>);

}  // namespace moiety
