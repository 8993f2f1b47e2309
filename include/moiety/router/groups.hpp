// SPDX-License-Identifier: Apache-2.0
// Group-limited routing: experts stand in Count groups of E / Count each, as on the nodes of a cluster; a token keeps the
// Kept groups of the largest group score, and selects among their experts alone. Of equal groups the lower wins.
//
//   groups<8, 3, group_score::largest>             DeepSeek-V2: the largest score of a group
//   groups<8, 4>                                   DeepSeek-V3: the sum of its two largest
//   groups<8, 4, group_score::sum_of_largest<N>>   Megatron: N = k / Kept
//
// Scores are those that the selection sees, bias included. Experts of other groups are removed, not set to 0: a score below
// 0 would lose to them. Count must divide E, and the groups that are kept must hold k experts.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// The score of the group of experts first … last − 1: a struct of the static function of(row, first, last).
namespace group_score {
template <int N> struct sum_of_largest {
  template <score_row Row> MOIETY_HD static auto of(Row const& row, int first, int last) {
    return row.template sum_of_largest<N>(first, last);
  }
};
using largest = sum_of_largest<1>;
}  // namespace group_score

template <class G>
concept group_rule = requires(G const rule, span_row<float> row) {
  { G::count_of_groups } -> std::convertible_to<int>;
  { G::kept } -> std::convertible_to<int>;
  rule.forward(row);
};

template <int Count, int Kept, class Score = group_score::sum_of_largest<2>> struct groups {
  static_assert(Count >= 1 && Count <= 64, "mo::groups takes 1 to 64 groups.");
  static_assert(Kept >= 1 && Kept <= Count, "mo::groups keeps at least one group and at most all.");
  static constexpr std::string_view name = "groups";
  static constexpr int count_of_groups = Count, kept = Kept;

  template <score_row Row> MOIETY_HD void forward(Row& row) const {
    using S = typename Row::value_type;
    int const size = row.size() / Count;
    detail::array_of<S, Count> score;
    for (int g = 0; g < Count; ++g) score[g] = Score::of(row, g * size, (g + 1) * size);
    std::uint64_t chosen = 0;
    for (int g = 0; g < Count; ++g) {
      int better = 0;
      for (int h = 0; h < Count; ++h) better += score[h] > score[g] || (score[h] == score[g] && h < g) ? 1 : 0;
      chosen |= static_cast<std::uint64_t>(better < Kept ? 1 : 0) << g;
    }
    row.map_indexed([&](S v, int e) { return (chosen >> (e / size)) % 2 != 0 ? v : detail::not_a_number<S>; });
  }
};
static_assert(group_rule<groups<2, 1>>);

}  // namespace moiety
