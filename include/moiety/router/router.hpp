// SPDX-License-Identifier: Apache-2.0
// A router: roles in any order, each by the concept that it models.
//
//   mo::router<mo::sigmoid, mo::selection_bias, mo::groups<8, 4>, mo::top_k<8>, mo::renormalised, mo::scale<std::ratio<5, 2>>>
//
//   jitter           or none   jitter.hpp           noise on what a layer's router sees of x, in training
//   linear_bias      or none   roles.hpp            a layer's logits have a bias: z = x Wᵀ + b
//   logit noise      or none   logit_noise.hpp      noise on a layer's logits, in training
//   score rule       one       score.hpp            logits z → scores s
//   bias             or none   selection_bias.hpp   s → what the selection sees
//   groups           or none   groups.hpp           which experts it sees
//   selection        one       selection.hpp        k experts; or of the whole batch, batch_selection.hpp
//   weight rule      or none   weights.hpp          s (or z) of the selected, without bias → weights
//   scale            or none   weights.hpp          weights → weights
//   on_…             or none   weights.hpp          what the weights multiply: an expert's output, activation or input
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
#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/kernels/route_together.hpp>
#include <moiety/router/batch_selection.hpp>
#include <moiety/router/rows.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class... Roles> class router : public router_rows<Roles...> {
  using base = router_rows<Roles...>;
  using base::roles_;

 public:
  using base::couples_tokens;
  using base::slots;
  using typename base::selection_type;
  template <class S> using scores_of = batch_of_scores<S>;

  constexpr router() noexcept = default;
  template <detail::one_of<Roles...>... Some> constexpr router(Some... some) : base(some...) {}

  /// The routing of a batch of logits [T × E], in the context's sum type.
  template <class Context>
  routing<typename Context::sum> forward(Context& ctx, matrix_view<typename Context::sum const> logits,
                                         batch const& about,
                                         non_finite policy = Context::backend::default_non_finite) const {
    using S = typename Context::sum;
    static_assert(detail::check_host<Context>());
    about.check(logits.rows());
    check(about, logits.rows(), logits.cols());
    routing<S> result(logits.rows(), logits.cols(), base::slots_of(logits.cols()), ctx.memory());
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
    if constexpr (base::has_groups) {
      constexpr std::int64_t groups = base::group_type::count_of_groups, kept = base::group_type::kept;
      detail::require<config_error>(experts % groups == 0, groups, " groups do not divide ", experts, " experts.");
      detail::require<config_error>(slots <= experts / groups * kept, "a router of ", slots,
                                    " slots cannot choose from ", kept, " groups of ", experts / groups, " experts.");
    }
    if constexpr (requires { selection_type::needs_ids; })
      detail::require<data_error>(tokens == 0 || !about.ids.empty(), selection_type::name,
                                  " needs token ids in mo::batch{.ids}.");
    if constexpr (requires { selection_type::needs_experts; })
      detail::require<data_error>(static_cast<std::int64_t>(about.experts.size()) == tokens * slots,
                                  selection_type::name, " needs ", tokens, " × ", slots,
                                  " expert ids in mo::batch{.experts}, but was given ", about.experts.size(), '.');
  }

  /// A router of the same score rule and nothing else, by which probabilities and their gradients are the same.
  auto scores_alone() const { return moiety::router<typename base::score_type, top_k<1>>{base::score()}; }

  /// The same router with the values of its selection bias [E].
  router with_bias(float const* values) const requires base::has_selection_bias {
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
};

/// Whether a token's experts and weights depend on nothing but the token: what the promises about layouts and neighbours ask
/// of a router.
template <class Router> inline constexpr bool row_independent = !Router::couples_tokens;

template <class T> inline constexpr bool is_router = false;
template <class... Roles> inline constexpr bool is_router<router<Roles...>> = true;

}  // namespace moiety
