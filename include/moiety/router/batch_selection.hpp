// SPDX-License-Identifier: Apache-2.0
// Selections that look at all tokens of a call at once. One token's experts then depend on its neighbours and on how the
// batch was cut, so the promises about layouts and neighbours do not hold for them.
//
//   expert_choice<K, Factor>                  router/expert_choice.hpp
//   sinkhorn<K, Iterations>                   router/sinkhorn.hpp
//   token_rounding<K, Tile, Rounding>         router/token_rounding.hpp
//
// A batch selection is a struct of
//   count                      slots of a token: a number, or every_expert
//   average                    experts that a token has on average, for costs
//   rows(tokens, experts)      the most rows that its choices can have
//   workspace_bytes<S>(tokens, experts)
//   select(engine, scores)     writes the ids of all tokens; an overload for each back end's engine
//   runs_on<Backend>           the back ends that it has one for; if it is not there: mo::host
//   reads_logits               if it is there: sees logits in place of scores, finite or −∞ as everywhere; refused with a
//                              bias or groups
//   sees_later_tokens          if it is there: refused by a spec that is causal
//   needs_ids, needs_probabilities   as in router/selection.hpp
// Tokens that are not dispatched take no part: they are neither chosen nor counted.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

/// As many slots as there are experts.
inline constexpr int every_expert = 0;

/// What a batch selection is given, and where its answer goes.
template <std::floating_point S> struct batch_of_scores {
  matrix_view<S> scores;      // [T × E] as the selection is to see them: biased, NaN where removed; may be changed
  token_state const* states;  // [T]
  token_table tokens;
  std::int64_t slots;
  std::int32_t* ids;     // [T × slots], no_expert throughout
  std::byte* workspace;  // workspace_bytes

  MOIETY_HD bool takes_part(std::int64_t t) const { return states[t] <= token_state::sanitised; }
  std::int64_t participants() const {
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < scores.rows(); ++t) count += takes_part(t) ? 1 : 0;
    return count;
  }
};

template <class S>
concept batch_selection = requires(S const rule) {
  { S::count } -> std::convertible_to<int>;
  { S::average } -> std::convertible_to<double>;
  { S::rows(std::int64_t{}, std::int64_t{}) } -> std::same_as<std::int64_t>;
  { S::template workspace_bytes<float>(std::int64_t{}, std::int64_t{}) } -> std::same_as<std::int64_t>;
};

/// Whether a batch selection can select on a back end.
template <class S, class Backend> inline constexpr bool selects_on = std::is_same_v<Backend, host>;
template <class S, class Backend>
requires requires { S::template runs_on<Backend>; }
inline constexpr bool selects_on<S, Backend> = S::template runs_on<Backend>;

}  // namespace moiety
