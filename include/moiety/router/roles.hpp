// SPDX-License-Identifier: Apache-2.0
// Who plays which role in a router, and what is said where a cast cannot play.
#pragma once

#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/router/batch_selection.hpp>
#include <moiety/router/groups.hpp>
#include <moiety/router/jitter.hpp>
#include <moiety/router/logit_noise.hpp>
#include <moiety/router/score.hpp>
#include <moiety/router/selection.hpp>
#include <moiety/router/selection_bias.hpp>
#include <moiety/router/weights.hpp>

#include <type_traits>

namespace moiety::inline MOIETY_ABI {

/// The logits of a layer's router have a trained bias: z = x Wᵀ + b, with b [E] as "router.bias" (gpt-oss).
struct linear_bias {};

namespace detail {

template <class T> using is_score_rule = std::bool_constant<score_rule<T>>;
template <class T> using is_bias_rule = std::bool_constant<bias_rule<T>>;
template <class T> using is_group_rule = std::bool_constant<group_rule<T>>;
template <class T> using is_selection = std::bool_constant<selection<T> || batch_selection<T>>;
template <class T> using is_weight_rule = std::bool_constant<weight_rule<T>>;
template <class T> using is_linear_bias = std::bool_constant<std::is_same_v<T, linear_bias>>;
template <class T> using is_jitter_role = std::bool_constant<is_jitter<T>>;
template <class T> using is_logit_noise_role = std::bool_constant<is_logit_noise<T>>;
template <class T> using is_place_role = std::bool_constant<is_weight_place<T>>;
template <class T> using is_scale_role = std::bool_constant<is_scale<T>>;

template <class T>
inline constexpr bool fits_a_role = is_score_rule<T>::value || is_bias_rule<T>::value || is_group_rule<T>::value ||
                                    is_selection<T>::value || is_weight_rule<T>::value || is_scale<T> ||
                                    is_linear_bias<T>::value || is_jitter<T> || is_logit_noise<T> || is_weight_place<T>;

/// In place of a role that a router does without.
struct no_role {};

/// One value of each role.
template <class... Roles> struct router_roles {
  using score = typename find_if<is_score_rule, softmax, Roles...>::type;
  using bias = typename find_if<is_bias_rule, no_role, Roles...>::type;
  using groups = typename find_if<is_group_rule, no_role, Roles...>::type;
  using selection = typename find_if<is_selection, top_k<2>, Roles...>::type;
  using weight = typename find_if<is_weight_rule, as_scored, Roles...>::type;
  using jitter = typename find_if<is_jitter_role, no_role, Roles...>::type;
  using logit_noise = typename find_if<is_logit_noise_role, no_role, Roles...>::type;
  using place = typename find_if<is_place_role, on_output, Roles...>::type;
  using scale = typename find_if<is_scale_role, moiety::scale<>, Roles...>::type;
  static constexpr bool has_linear_bias = count_if<is_linear_bias, Roles...> == 1;
  static constexpr bool has_scale = count_if<is_scale_role, Roles...> == 1;

  score score_rule{};
  bias bias_rule{};
  groups group_rule{};
  jitter jitter_rule{};
  logit_noise noise_rule{};
  selection selection_rule{};
  weight weight_rule{};
  scale scale_rule{};

  /// f(policy) of each. One with values may say check(), which throws config_error for those that can never work; and
  /// for_each_value(f), which calls f(name, value) of those that ranks must have in common, and has a `name` itself.
  template <class F> void for_each(F const& f) const {
    f(score_rule), f(bias_rule), f(group_rule), f(jitter_rule), f(noise_rule), f(selection_rule), f(weight_rule);
  }

  template <class Role> constexpr void assign(Role const& role) {
    if constexpr (std::is_same_v<Role, score>)
      score_rule = role;
    else if constexpr (std::is_same_v<Role, bias>)
      bias_rule = role;
    else if constexpr (std::is_same_v<Role, groups>)
      group_rule = role;
    else if constexpr (std::is_same_v<Role, selection>)
      selection_rule = role;
    else if constexpr (std::is_same_v<Role, weight>)
      weight_rule = role;
    else if constexpr (std::is_same_v<Role, jitter>)
      jitter_rule = role;
    else if constexpr (std::is_same_v<Role, logit_noise>)
      noise_rule = role;
    else if constexpr (std::is_same_v<Role, scale>)
      scale_rule = role;
  }
};

template <class Selection>
concept needs_probabilities = requires {
  Selection::needs_probabilities;
};
template <class Selection>
concept reads_logits = requires {
  Selection::reads_logits;
};
template <class Selection>
concept sees_later_tokens = requires {
  Selection::sees_later_tokens;
};

template <class... Roles> consteval bool check_router() {
  static_assert((fits_a_role<Roles> && ...),
                "mo::router was given a type that is no score rule, bias, groups, selection, weight rule or scale.");
  if constexpr ((fits_a_role<Roles> && ...)) {
    static_assert(count_if<is_score_rule, Roles...> == 1,
                  "mo::router takes exactly one score rule, as in mo::router<mo::softmax, mo::top_k<2>>.");
    static_assert(count_if<is_selection, Roles...> == 1,
                  "mo::router takes exactly one selection, as in mo::router<mo::softmax, mo::top_k<2>>.");
    static_assert(count_if<is_linear_bias, Roles...> <= 1, "mo::router takes mo::linear_bias at most once.");
    static_assert(count_if<is_place_role, Roles...> <= 1,
                  "mo::router takes at most one of mo::on_output, mo::on_activation and mo::on_input.");
    static_assert(count_if<is_jitter_role, Roles...> <= 1, "mo::router takes at most one jitter.");
    static_assert(count_if<is_logit_noise_role, Roles...> <= 1, "mo::router takes at most one logit noise.");
    static_assert(count_if<is_bias_rule, Roles...> <= 1, "mo::router takes at most one selection bias.");
    static_assert(count_if<is_group_rule, Roles...> <= 1, "mo::router takes groups at most once.");
    static_assert(count_if<is_weight_rule, Roles...> <= 1, "mo::router takes at most one weight rule.");
    static_assert(count_if<is_scale_role, Roles...> <= 1, "mo::router takes at most one scale.");
    using roles = router_roles<Roles...>;
    using chosen_type = typename roles::selection;
    constexpr bool renormalises = std::is_same_v<typename roles::weight, renormalised>;
    constexpr bool of_selected = std::is_same_v<typename roles::weight, softmax_of_selected>;
    constexpr bool changes = count_if<is_bias_rule, Roles...> != 0 || count_if<is_group_rule, Roles...> != 0;
    static_assert(chosen_type::count != 1 || !(renormalises || of_selected),
                  "mo::top_k<1> with renormalised weights gives the router no gradient: use the scores as they are.");
    static_assert(!renormalises || has_probabilities<typename roles::score>,
                  "mo::renormalised needs scores that are not negative: use mo::softmax_of_selected.");
    static_assert(!row_weight_rule<typename roles::weight> || (selection<chosen_type> && fills_every_slot<chosen_type>),
                  "a weight rule that looks at all logits needs a selection that fills every slot, as mo::top_k.");
    static_assert(!needs_probabilities<chosen_type> || (rows_are_probabilities<typename roles::score> && !changes),
                  "mo::top_p needs a score rule whose rows sum to one, as mo::softmax, and nothing that changes them.");
    static_assert(!reads_logits<chosen_type> || !changes,
                  "mo::sinkhorn works on the logits: it takes no selection bias and no groups.");
  }
  return true;
}

}  // namespace detail
}  // namespace moiety
