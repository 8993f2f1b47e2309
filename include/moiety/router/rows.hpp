// SPDX-License-Identifier: Apache-2.0
// What a router does with the row of one token, on every back end: the roles in their order, forward and backward. See
// router/router.hpp.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/router/batch_selection.hpp>
#include <moiety/router/roles.hpp>
#include <moiety/router/score.hpp>
#include <moiety/router/selection.hpp>
#include <moiety/router/weights.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

template <class... Roles> class router_rows {
  static_assert(detail::check_router<Roles...>());

 protected:
  using roles = detail::router_roles<Roles...>;

 public:
  using score_type = typename roles::score;
  using bias_type = typename roles::bias;
  using group_type = typename roles::groups;
  using selection_type = typename roles::selection;
  using weight_type = typename roles::weight;
  using scale_type = typename roles::scale;

  static constexpr bool has_selection_bias = !std::is_same_v<bias_type, detail::no_role>;
  static constexpr bool has_linear_bias = roles::has_linear_bias;
  static constexpr bool has_jitter = !std::is_same_v<typename roles::jitter, detail::no_role>;
  static constexpr bool has_logit_noise = is_logit_noise<typename roles::logit_noise>;
  /// Whether the noise has a matrix of its own.
  static constexpr bool has_learned_noise = std::is_same_v<typename roles::logit_noise, moiety::logit_noise>;
  static constexpr bool has_groups = !std::is_same_v<group_type, detail::no_role>;
  static constexpr bool couples_tokens = batch_selection<selection_type>;
  /// What the weights multiply.
  static constexpr weight_place place = roles::place::place;
  /// Whether a slot without an expert is an error.
  static constexpr bool needs_every_slot = !couples_tokens && fills_every_slot<selection_type>;
  /// Slots of a token where the selection says so, else every_expert.
  static constexpr int slots = selection_type::count;
  static constexpr std::int64_t slots_of(std::int64_t experts) {
    return couples_tokens && slots == every_expert ? experts : slots;
  }
  /// Experts that a token has, on average where that is up to the batch.
  static constexpr std::int64_t active_of(std::int64_t experts) {
    if constexpr (couples_tokens)
      return std::min(experts, static_cast<std::int64_t>(selection_type::average + 0.5));
    else
      return slots;
  }
  /// The most rows that the experts of a call of `tokens` tokens have.
  static constexpr std::int64_t rows_of(std::int64_t tokens, std::int64_t experts) {
    if constexpr (couples_tokens)
      return selection_type::rows(tokens, experts);
    else
      return tokens * slots;
  }

  constexpr router_rows() noexcept = default;
  template <detail::one_of<Roles...>... Some> constexpr router_rows(Some... some) { (roles_.assign(some), ...); }

  score_type const& score() const { return roles_.score_rule; }
  selection_type const& selection() const { return roles_.selection_rule; }
  bias_type const& bias() const { return roles_.bias_rule; }
  typename roles::jitter const& jitter() const { return roles_.jitter_rule; }
  typename roles::logit_noise const& noise() const { return roles_.noise_rule; }
  template <class F> void for_each_policy(F const& f) const { roles_.for_each(f); }
  MOIETY_HD float scale_factor() const { return roles_.scale_rule.factor; }

  // Each of the functions below is compiled as one piece, policies included: only then do their loops become vectors.

  /// Whether the selection sees other values than the scores, or makes others of them.
  static constexpr bool changes_scores = has_selection_bias || has_groups || writes_scores<selection_type>;

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
    finish(logits, scores, weights, ids);
  }

  /// One token of a batch selection: what it sees of the scores. `row` holds logits, then that.
  template <score_row Row> [[gnu::flatten]] MOIETY_HD void candidate_row(Row row) const {
    if constexpr (!detail::reads_logits<selection_type>) roles_.score_rule.forward(row);
    limit(row);
  }

  /// One token whose ids are given: its weights. `scores` is scratch of E values.
  template <score_row Row>
  [[gnu::flatten]] MOIETY_HD void weight_row(Row const& logits, Row scores, Row weights,
                                             std::int32_t const* ids) const {
    copy(logits, scores);
    roles_.score_rule.forward(scores);
    gather(from_scores ? scores : logits, ids, weights);
    finish(logits, scores, weights, ids);
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
    weigh(logits, normalised, weights, ids);
    scale_weights(dweights);
    if (renormalises_kept_) renormalise_kept_backward(weights, ids, dweights);
    if constexpr (row_weight_rule<weight_type>) {
      roles_.weight_rule.backward(logits, normalised, ids, dweights, dlogits);
    } else {
      roles_.weight_rule.backward(inputs, weights, dweights);
      Row const& target = from_scores ? dprobabilities : dlogits;
      for (int slot = 0; slot < count(weights); ++slot)
        if (has_expert(ids[slot])) target[asked_for(ids[slot])] += dweights[slot];
    }
    roles_.score_rule.backward(scores, dprobabilities);
    dlogits.map(dprobabilities, [](auto total, auto g) { return total + g; });
  }

 protected:
  roles roles_{};
  bool renormalises_kept_ = false;

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

  /// What the weight rule makes of the weights, which hold what it starts from; `scratch` has E values.
  template <score_row Row>
  MOIETY_HD void weigh(Row const& logits, Row& scratch, Row& weights, std::int32_t const* ids) const {
    if constexpr (row_weight_rule<weight_type>)
      roles_.weight_rule.forward(logits, scratch, ids, weights);
    else
      roles_.weight_rule.forward(weights);
  }

  template <score_row Row>
  MOIETY_HD void finish(Row const& logits, Row& scratch, Row& weights, std::int32_t const* ids) const {
    weigh(logits, scratch, weights, ids);
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
};

}  // namespace moiety
