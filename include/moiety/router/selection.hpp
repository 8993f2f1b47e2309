// SPDX-License-Identifier: Apache-2.0
// Selections: which k experts a token goes to, given its scores (biased and limited to groups, where the router says so).
//
//   top_k<K>                      the K largest scores, largest first; of equal scores the lower index wins
//   top_p<Cap, Mass>              the fewest whose scores sum to Mass or more, at most Cap       router/top_p.hpp
//   hash<K>                       those of a table, by token id                                  router/hash.hpp
//   precomputed<K>                those that the batch brings: replay                            router/precomputed.hpp
//   forced<K, Imbalance>          whatever gives a named load, for benchmarks                    router/forced.hpp
//
// A selection is a struct with the constant `count` (k) and the member forward(row, chosen), or forward(row, token, chosen)
// if it looks at more than the scores (batch/token.hpp). It calls chosen(slot, expert) once for every slot, with distinct
// experts, before it removes an expert from the row. A slot that is left out, or given an expert outside 0 … E − 1, as
// argmax gives where none is left, ends in a data_error, unless `static constexpr bool fills_every_slot = false`. One that
// writes values of its own into the row says `static constexpr bool writes_scores = true`: weights are not read from there.
// Three members more count where they are there, whatever their value:
//
//   needs_ids             a batch of tokens without mo::batch{.ids} is a data_error, which says the selection's `name`
//   needs_experts         so is one without an id for each slot in mo::batch{.experts}
//   needs_probabilities   refused but for scores that sum to one, as those of softmax, without bias and groups
//
// A selection that looks at all tokens of a batch at once is of another kind: see router/batch_selection.hpp.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class S>
concept selects_by_token = requires(S const rule, span_row<float> row, token_view const token,
                                    void (*chosen)(int, int)) {
  rule.forward(row, token, chosen);
};

template <class S>
concept selection = requires {
  { S::count } -> std::convertible_to<int>;
}
&&(selects_by_token<S> ||
   requires(S const rule, span_row<float> row, void (*chosen)(int, int)) { rule.forward(row, chosen); });

/// Whether a selection has an expert for every slot of every token.
template <class S> inline constexpr bool fills_every_slot = true;
template <class S>
requires requires { S::fills_every_slot; }
inline constexpr bool fills_every_slot<S> = S::fills_every_slot;

/// Whether a selection leaves other scores in the row than it was given, beside removed ones.
template <class S> inline constexpr bool writes_scores = false;
template <class S>
requires requires { S::writes_scores; }
inline constexpr bool writes_scores<S> = S::writes_scores;

namespace detail {

/// The experts of a list, each for its slot; one that stands there twice is left out, and so is its slot.
template <class Chosen> MOIETY_HD void choose_listed(std::int32_t const* experts, int count, Chosen const& chosen) {
  for (int slot = 0; slot < count; ++slot) {
    bool distinct = true;
    for (int before = 0; before < slot; ++before) distinct = distinct && experts[before] != experts[slot];
    if (distinct) chosen(slot, experts[slot]);
  }
}

}  // namespace detail

template <int K> struct top_k {
  static constexpr std::string_view name = "top_k";
  static constexpr int count = K;

  template <score_row Row, class Chosen> MOIETY_HD void forward(Row& scores, Chosen const& chosen) const {
    scores.template largest<K>(chosen);
  }
};
static_assert(selection<top_k<2>>);

template <class S> inline constexpr bool is_top_k = false;
template <int K> inline constexpr bool is_top_k<top_k<K>> = true;

}  // namespace moiety
