// SPDX-License-Identifier: Apache-2.0
// Selections: which k experts a token goes to, given its scores.
//
//   top_k<K>   the K largest scores, largest first; of equal scores the lower index wins
//
// A selection is a struct with the constant `count` (k) and the member forward(row, chosen), which calls
// chosen(slot, expert) once for every slot, with distinct experts, before it removes an expert from the row. A slot that is
// left out, or given an expert outside 0 … E − 1, as argmax gives where none is left, ends in a data_error.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>

#include <concepts>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class S>
concept selection = requires(S const rule, span_row<float> row, void (*chosen)(int, int)) {
  { S::count } -> std::convertible_to<int>;
  rule.forward(row, chosen);
};

template <int K> struct top_k {
  static constexpr std::string_view name = "top_k";
  static constexpr int count = K;

  template <score_row Row, class Chosen> MOIETY_HD void forward(Row& scores, Chosen const& chosen) const {
    scores.template largest<K>(chosen);
  }
};
static_assert(selection<top_k<2>>);

}  // namespace moiety
