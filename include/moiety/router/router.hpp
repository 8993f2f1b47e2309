// SPDX-License-Identifier: Apache-2.0
// A router: score rule, selection, weight rule and scale, in any order; each says its role by the concept it models.
//
//   mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>
//
// forward: logits z [T × E] → routing: ids and weights [T × k]. For one token: scores s = score(z); the selection picks
// k experts by s; the weight rule turns the s (or z) of the selected into weights; the scale multiplies them.
// The gradient of the weights reaches the logits through all of these; ids carry none. Nothing but the logits is saved.
//
// A logit that is not finite is an error (`non_finite::reject`), or its token is sanitised: NaN counts as −∞, +∞ as the
// largest finite number, and the token takes no part in losses and router gradients; with no logit above −∞ it is routed
// nowhere. Ids are in range in every case, and distinct if the selection keeps its word: where scores or a selection leave
// a slot without an expert in range, data_error names the token.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/router/score.hpp>
#include <moiety/router/selection.hpp>
#include <moiety/router/weights.hpp>

#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

namespace detail {

template <class T> using is_score_rule = std::bool_constant<score_rule<T>>;
template <class T> using is_selection = std::bool_constant<selection<T>>;
template <class T> using is_weight_rule = std::bool_constant<weight_rule<T>>;
template <class T> using is_scale_role = std::bool_constant<is_scale<T>>;

template <class T> inline constexpr bool fits_a_role = score_rule<T> || selection<T> || weight_rule<T> || is_scale<T>;

template <template <class> class Role, class... Roles>
inline constexpr int count_role = (0 + ... + (Role<Roles>::value ? 1 : 0));

}  // namespace detail

template <class... Roles> class router {
 public:
  using score_type = typename detail::find_if<detail::is_score_rule, softmax, Roles...>::type;
  using selection_type = typename detail::find_if<detail::is_selection, top_k<2>, Roles...>::type;
  using weight_type = typename detail::find_if<detail::is_weight_rule, as_scored, Roles...>::type;
  using scale_type = typename detail::find_if<detail::is_scale_role, scale<>, Roles...>::type;
  static constexpr int slots = selection_type::count;

 private:
  static consteval bool check() {
    static_assert((detail::fits_a_role<Roles> && ...),
                  "mo::router was given a type that is no score rule, selection, weight rule or scale.");
    if constexpr ((detail::fits_a_role<Roles> && ...)) {
      static_assert(detail::count_role<detail::is_score_rule, Roles...> == 1,
                    "mo::router takes exactly one score rule, as in mo::router<mo::softmax, mo::top_k<2>>.");
      static_assert(detail::count_role<detail::is_selection, Roles...> == 1,
                    "mo::router takes exactly one selection, as in mo::router<mo::softmax, mo::top_k<2>>.");
      static_assert(detail::count_role<detail::is_weight_rule, Roles...> <= 1,
                    "mo::router takes at most one weight rule.");
      static_assert(detail::count_role<detail::is_scale_role, Roles...> <= 1, "mo::router takes at most one scale.");
      static_assert(slots != 1 || !(std::is_same_v<weight_type, renormalised> ||
                                    std::is_same_v<weight_type, softmax_of_selected>),
                    "mo::top_k<1> with renormalised weights gives the router no gradient: use the scores as they are.");
    }
    return true;
  }
  static_assert(check());

 public:
  constexpr router() noexcept = default;
  template <detail::one_of<Roles...>... Some> constexpr router(Some... some) { (assign(some), ...); }

  /// The routing of a batch of logits [T × E], in the context's sum type.
  template <class Context>
  routing<typename Context::sum> forward(Context& ctx, matrix_view<typename Context::sum const> logits,
                                         non_finite policy = Context::backend::default_non_finite) const {
    static_assert(detail::check_host<Context>());
    routing<typename Context::sum> result(logits.rows(), logits.cols(), slots, ctx.memory());
    kernels::route(ctx.engine(), *this, logits, {}, policy, result.view());
    return result;
  }

  score_type const& score() const { return score_; }
  float scale_factor() const { return scale_.factor; }

  // Each of the three below is compiled as one piece, policies included: only then do their loops become vectors.

  /// One token: its ids and weights. `scores` is scratch of E values, `weights` has k. The id of a slot for which the
  /// selection chose nothing, or no expert of 0 … E − 1, is −1.
  template <score_row Row>
  [[gnu::flatten]] MOIETY_HD void forward_row(Row const& logits, Row scores, Row weights, std::int32_t* ids) const {
    copy(logits, scores);
    score_.forward(scores);
    for (int slot = 0; slot < slots; ++slot) ids[slot] = -1, weights[slot] = 0;
    selection_.forward(scores, [&](int slot, int expert) {
      if (!detail::is_index(slot, slots) || !detail::is_index(expert, logits.size())) return;
      ids[slot] = static_cast<std::int32_t>(expert);
      weights[slot] = weight_type::source == weight_source::scores ? scores[expert] : logits[expert];
    });
    weights_.forward(weights);
    scale_weights(weights);
  }

  /// One token's row of probabilities, as balance losses see it: the scores, normalised to one if the rule does not.
  template <score_row Row> [[gnu::flatten]] MOIETY_HD void probability_row(Row row) const {
    score_.forward(row);
    if constexpr (!rows_are_probabilities<score_type>) weights_of_all_.forward(row);
  }

  /// One token: the gradient of its weights (k values, overwritten) and of its probabilities (E values, overwritten) is
  /// added to that of its logits. `scores` and `normalised` are scratch of E values, `inputs` and `weights` of k.
  template <score_row Row>
  [[gnu::flatten]] MOIETY_HD void backward_row(Row const& logits, std::int32_t const* ids, Row dweights,
                                               Row dprobabilities, Row dlogits, Row scores, Row normalised, Row inputs,
                                               Row weights) const {
    copy(logits, scores);
    score_.forward(scores);
    if constexpr (!rows_are_probabilities<score_type>) {
      copy(scores, normalised);
      weights_of_all_.forward(normalised);
      weights_of_all_.backward(scores, normalised, dprobabilities);
    }
    Row const& source = weight_type::source == weight_source::scores ? scores : logits;
    for (int slot = 0; slot < slots; ++slot) inputs[slot] = source[ids[slot]];
    copy(inputs, weights);
    weights_.forward(weights);
    scale_weights(dweights);
    weights_.backward(inputs, weights, dweights);
    Row const& target = weight_type::source == weight_source::scores ? dprobabilities : dlogits;
    for (int slot = 0; slot < slots; ++slot) target[ids[slot]] += dweights[slot];
    score_.backward(scores, dprobabilities);
    dlogits.map(dprobabilities, [](auto total, auto g) { return total + g; });
  }

 private:
  template <score_row Row> MOIETY_HD static void copy(Row const& from, Row& to) {
    to.map(from, [](auto, auto v) { return v; });
  }

  template <score_row Row> MOIETY_HD void scale_weights(Row& row) const {
    if constexpr (detail::count_role<detail::is_scale_role, Roles...> == 1) {
      auto const factor = static_cast<typename Row::value_type>(scale_.factor);
      row.map([&](auto v) { return v * factor; });
    }
  }

  template <class Role> constexpr void assign(Role const& role) {
    if constexpr (std::is_same_v<Role, score_type>)
      score_ = role;
    else if constexpr (std::is_same_v<Role, selection_type>)
      selection_ = role;
    else if constexpr (std::is_same_v<Role, weight_type>)
      weights_ = role;
    else
      scale_ = role;
  }

  score_type score_{};
  selection_type selection_{};
  weight_type weights_{};
  scale_type scale_{};
  renormalised weights_of_all_{};
};

template <class T> inline constexpr bool is_router = false;
template <class... Roles> inline constexpr bool is_router<router<Roles...>> = true;

}  // namespace moiety
