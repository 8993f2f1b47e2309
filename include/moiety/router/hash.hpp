// SPDX-License-Identifier: Apache-2.0
// Hash layers (Roller et al., 2021; the first layers of DeepSeek-V4): the experts of a token are a function of its id.
//
//   mo::layer_options<Spec>{.router = {mo::hash<2>{.table = table, .entries = vocabulary}}}      table [entries × K]
//
// The table lies in memory of the back end and outlives the router; on the host it is complete when a layer of several ranks,
// which compare it, is made. mo::batch{.ids} gives the ids. Weights are those of the scores, with their gradient. A token whose
// id is outside the table, or whose row of it is not of K distinct experts, is one with too few experts: data_error.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/router/selection.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
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

  template <class F> void for_each_value(F const& f) const {
    std::int64_t const listed = table == nullptr ? 0 : std::max(std::int64_t{0}, entries) * K;
    f("entries", entries), f("table", std::span(table, static_cast<std::size_t>(listed)));
  }

  /// Throws config_error for a table that is not there.
  void check() const {
    detail::require<config_error>(entries >= 0, "the entries of mo::hash must be at least 0, but are ", entries, '.');
    detail::require<config_error>(entries == 0 || table != nullptr, "mo::hash was given no table of its ", entries,
                                  " entries.");
  }
};
static_assert(selection<hash<2>>);

}  // namespace moiety
