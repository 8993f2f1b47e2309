// SPDX-License-Identifier: Apache-2.0
// A router: roles in any order, each by the concept that it models.
//
//   mo::router<mo::sigmoid, mo::selection_bias, mo::groups<8, 4>, mo::top_k<8>, mo::renormalised, mo::scale<std::ratio<5, 2>>>
//
//   score rule       one       score.hpp            logits z → scores s
//   bias             or none   selection_bias.hpp   s → what the selection sees
//   groups           or none   groups.hpp           which experts it sees
//   selection        one       selection.hpp        k experts; or of the whole batch, batch_selection.hpp
//   weight rule      or none   weights.hpp          s (or z) of the selected, without bias → weights
//   scale            or none   weights.hpp          weights → weights
//
// forward: logits [T × E] → routing: ids and weights [T × k]. The gradient of the weights reaches the logits through all of
// these; ids carry none. Nothing but the logits is saved.
//
// A logit that is not finite is an error (`non_finite::reject`), or its token is sanitised: NaN counts as −∞, +∞ as the
// largest finite number, a weight that is not finite as 0, and the token takes no part in losses and router gradients; with
// no logit above −∞ it is routed nowhere. Ids are in range in every case, and distinct if the selection keeps its word: where
// a slot is left without an expert in range, data_error names the token.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/kernels/route_together.hpp>
#include <moiety/router/batch_selection.hpp>
#include <moiety/router/groups.hpp>
#include <moiety/router/roles.hpp>
#include <moiety/router/score.hpp>
#include <moiety/router/selection.hpp>
#include <moiety/router/selection_bias.hpp>
#include <moiety/router/weights.hpp>

#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

template <class... Roles> class router {
  static_assert(detail::check_router<Roles...>());
  using roles = detail::router_roles<Roles...>;

 public:
  using score_type = typename roles::score;
  using bias_type = typename roles::bias;
  using group_type = typename roles::groups;
  using selection_type = typename roles::selection;
  using weight_type = typename roles::weight;
  using scale_type = typename roles::scale;

  static constexpr bool has_selection_bias = !std::is_same_v<bias_type, detail::no_role>;
  static constexpr bool has_groups = !std::is_same_v<group_type, detail::no_role>;
  static constexpr bool couples_tokens = batch_selection<selection_type>;
  /// Whether a slot without an expert is an error.
  static constexpr bool needs_every_slot = !couples_tokens && fills_every_slot<selection_type>;
  /// Slots of a token where the selection says so, else every_expert.
  static constexpr int slots = selection_type::count;
  static constexpr std::int64_t slots_of(std::int64_t experts) { return slots == every_expert ? experts : slots; }
  /// The most rows that the experts of a call of `tokens` tokens have.
  static constexpr std::int64_t rows_of(std::int64_t tokens, std::int64_t experts) {
    if constexpr (couples_tokens)
      return selection_type::rows(tokens, experts);
    else
      return tokens * slots;
  }

  template <class S> using scores_of = batch_of_scores<S>;

  constexpr router() noexcept = default;
  template <detail::one_of<Roles...>... Some> constexpr router(Some... some) { (roles_.assign(some), ...); }

  /// The routing of a batch of logits [T × E], in the context's sum type.
  template <class Context>
  routing<typename Context::sum> forward(Context& ctx, matrix_view<typename Context::sum const> logits,
                                         batch const& about,
                                         non_finite policy = Context::backend::default_non_finite) const {
    using S = typename Context::sum;
    static_assert(detail::check_host<Context>());
    about.check(logits.rows());
    check(about, logits.rows(), logits.cols());
    routing<S> result(logits.rows(), logits.cols(), slots_of(logits.cols()), ctx.memory());
    if constexpr (couples_tokens) {
      buffer const work(kernels::route_workspace<router, S>(logits.rows(), logits.cols()), ctx.memory());
      kernels::route_together(ctx.engine(), *this, logits, about, policy, result.view(), work.data());
    } else {
      kernels::route(ctx.engine(), *this, logits, about, policy, result.view());
    }
    return result;
  }
  template <class Context>
  routing<typename Context::sum> forward(Context& ctx, matrix_view<typename Context::sum const> logits,
                                         non_finite policy = Context::backend::default_non_finite) const {
    return forward(ctx, logits, batch{}, policy);
  }

  /// Throws data_error where the batch has not what the selection needs, config_error where E experts do not fit the roles.
  void check(batch const& about, std::int64_t tokens, std::int64_t experts) const {
    detail::require<config_error>(slots <= experts, "a router of ", slots, " slots cannot choose from ", experts,
                                  " experts.");
    if constexpr (has_groups)
      detail::require<config_error>(experts % group_type::count_of_groups == 0, group_type::count_of_groups,
                                    " groups do not divide ", experts, " experts.");
    if constexpr (requires { selection_type::needs_ids; })
      detail::require<data_error>(tokens == 0 || !about.ids.empty(), selection_type::name,
                                  " needs token ids in mo::batch{.ids}.");
    if constexpr (requires { selection_type::needs_experts; })
      detail::require<data_error>(static_cast<std::int64_t>(about.experts.size()) == tokens * slots,
                                  selection_type::name, " needs ", tokens, " × ", slots,
                                  " expert ids in mo::batch{.experts}, but was given ", about.experts.size(), '.');
  }

  score_type const& score() const { return roles_.score_rule; }
  selection_type const& selection() const { return roles_.selection_rule; }
  bias_type const& bias() const { return roles_.bias_rule; }
  float scale_factor() const { return roles_.scale_rule.factor; }

  /// The same router with the values of its selection bias [E].
  router with_bias(float const* values) const requires has_selection_bias {
    router result = *this;
    result.roles_.bias_rule.values = values;
    return result;
  }

  /// The same router under a capacity that has the weights that a token keeps renormalised.
  router with_kept_renormalised() const {
    router result = *this;
    result.renormalises_kept_ = true;
    return result;
  }

  // Each of the functions below is compiled as one piece, policies included: only then do their loops become vectors.

  /// Whether the selection sees other values than the scores.
  static constexpr bool changes_scores = has_selection_bias || has_groups;

  /// One token: its ids and weights. `scores` and `candidates` are scratch of E values, `weights` has k; if the selection sees
  /// the scores themselves, candidates may be scores. The id of a slot for which it chose nothing, or no expert of
  /// 0 … E − 1, is no_expert.
  template <score_row Row>
  [[gnu::flatten]] MOIETY_HD void forward_row(Row const& logits, Row scores, Row candidates, Row weights,
                                              std::int32_t* ids, token_view const& token) const {
    copy(logits, scores);
    roles_.score_rule.forward(scores);
    Row& seen = changes_scores ? candidates : scores;
    if constexpr (changes_scores) {
      copy(scores, candidates);
      limit(candidates);
    }
    clear(weights, ids);
    auto const chosen = [&](int slot, int expert) {
      if (!detail::is_index(slot, weights.size()) || !detail::is_index(expert, logits.size())) return;
      ids[slot] = static_cast<std::int32_t>(expert);
      weights[slot] = from_scores ? scores[expert] : logits[expert];
    };
    if constexpr (selects_by_token<selection_type>)
      roles_.selection_rule.forward(seen, token, chosen);
    else
      roles_.selection_rule.forward(seen, chosen);
    finish(weights, ids);
  }

  /// One token of a batch selection: what it sees of the scores. `row` holds logits, then that.
  template <score_row Row> [[gnu::flatten]] MOIETY_HD void candidate_row(Row row) const {
    roles_.score_rule.forward(row);
    limit(row);
  }

  /// One token whose ids are given: its weights. `scores` is scratch of E values.
  template <score_row Row>
  [[gnu::flatten]] MOIETY_HD void weight_row(Row const& logits, Row scores, Row weights,
                                             std::int32_t const* ids) const {
    copy(logits, scores);
    roles_.score_rule.forward(scores);
    gather(from_scores ? scores : logits, ids, weights);
    finish(weights, ids);
  }

  /// One token after drops: its weights become scale · w / Σ w of the slots kept; those dropped are 0.
  template <score_row Row> MOIETY_HD void renormalise_kept(Row weights) const {
    using S = typename Row::value_type;
    S const factor = static_cast<S>(scale_factor()) / renormalised::divisor(weights);
    weights.map([&](S w) { return w * factor; });
  }

  /// One token's row of probabilities, as balance losses see it: the scores, normalised to one if the rule does not; 0 of a
  /// rule without.
  template <score_row Row> [[gnu::flatten]] MOIETY_HD void probability_row(Row row) const {
    if constexpr (!has_probabilities<score_type>) {
      row.map([](auto v) { return v - v; });
    } else {
      roles_.score_rule.forward(row);
      if constexpr (!rows_are_probabilities<score_type>) renormalised{}.forward(row);
    }
  }

  /// One token: the gradient of its weights (k values, overwritten) and of its probabilities (E values, overwritten) is
  /// added to that of its logits. `scores` and `normalised` are scratch of E values, `inputs` and `weights` of k.
  template <score_row Row>
  [[gnu::flatten]] MOIETY_HD void backward_row(Row const& logits, std::int32_t const* ids, Row dweights,
                                               Row dprobabilities, Row dlogits, Row scores, Row normalised, Row inputs,
                                               Row weights) const {
    copy(logits, scores);
    roles_.score_rule.forward(scores);
    if constexpr (has_probabilities<score_type> && !rows_are_probabilities<score_type>) {
      copy(scores, normalised);
      renormalised{}.forward(normalised);
      renormalised{}.backward(scores, normalised, dprobabilities);
    }
    gather(from_scores ? scores : logits, ids, inputs);
    copy(inputs, weights);
    roles_.weight_rule.forward(weights);
    scale_weights(dweights);
    if (renormalises_kept_) renormalise_kept_backward(weights, ids, dweights);
    roles_.weight_rule.backward(inputs, weights, dweights);
    Row const& target = from_scores ? dprobabilities : dlogits;
    for (int slot = 0; slot < count(weights); ++slot)
      if (has_expert(ids[slot])) target[asked_for(ids[slot])] += dweights[slot];
    roles_.score_rule.backward(scores, dprobabilities);
    dlogits.map(dprobabilities, [](auto total, auto g) { return total + g; });
  }

 private:
  static constexpr bool from_scores = weight_type::source == weight_source::scores;

  template <score_row Row> MOIETY_HD static int count(Row const& weights) {
    return slots == every_expert ? weights.size() : slots;
  }

  MOIETY_HD static constexpr bool has_expert(std::int32_t id) { return needs_every_slot ? true : id != no_expert; }

  template <score_row Row> MOIETY_HD static void copy(Row const& from, Row& to) {
    to.map(from, [](auto, auto v) { return v; });
  }

  /// What a weight rule starts from in a slot without an expert: whatever ends as weight 0.
  template <class S> static constexpr S nothing = from_scores ? S{0} : -detail::infinity<S>;

  template <score_row Row> MOIETY_HD static void clear(Row& weights, std::int32_t* ids) {
    using S = typename Row::value_type;
    for (int slot = 0; slot < count(weights); ++slot) ids[slot] = no_expert, weights[slot] = nothing<S>;
  }

  template <score_row Row> MOIETY_HD static void gather(Row const& from, std::int32_t const* ids, Row& weights) {
    using S = typename Row::value_type;
    for (int slot = 0; slot < count(weights); ++slot)
      weights[slot] = has_expert(ids[slot]) ? static_cast<S>(from[asked_for(ids[slot])]) : nothing<S>;
  }

  template <score_row Row> MOIETY_HD void limit(Row& row) const {
    if constexpr (has_selection_bias) roles_.bias_rule.forward(row);
    if constexpr (has_groups) roles_.group_rule.forward(row);
  }

  template <score_row Row> MOIETY_HD void finish(Row& weights, std::int32_t const* ids) const {
    roles_.weight_rule.forward(weights);
    scale_weights(weights);
    if constexpr (!needs_every_slot)
      for (int slot = 0; slot < count(weights); ++slot)
        if (!has_expert(ids[slot])) weights[slot] = 0;
  }

  /// From the gradient of r_j / Σ_kept r to that of the weights r before the scale.
  template <score_row Row>
  MOIETY_HD static void renormalise_kept_backward(Row const& weights, std::int32_t const* ids, Row& gradient) {
    using S = typename Row::value_type;
    S total = static_cast<S>(renormalised::floor), inner = 0;
    for (int slot = 0; slot < count(weights); ++slot)
      if (ids[slot] >= 0)
        total += static_cast<S>(weights[slot]),
            inner = fma(static_cast<S>(weights[slot]), static_cast<S>(gradient[slot]), inner);
    for (int slot = 0; slot < count(weights); ++slot)
      gradient[slot] = ids[slot] >= 0 ? (static_cast<S>(gradient[slot]) - inner / total) / total : S{0};
  }

  template <score_row Row> MOIETY_HD void scale_weights(Row& row) const {
    if constexpr (roles::has_scale) {
      auto const factor = static_cast<typename Row::value_type>(roles_.scale_rule.factor);
      row.map([&](auto v) { return v * factor; });
    }
  }

  roles roles_{};
  bool renormalises_kept_ = false;
};

template <class T> inline constexpr bool is_router = false;
template <class... Roles> inline constexpr bool is_router<router<Roles...>> = true;

}  // namespace moiety
