// SPDX-License-Identifier: Apache-2.0
// A spec says what a layer computes, in the words of a model card. It names no device, number type or rank.
//
//   struct mine : mo::layer_spec<mo::dims{.hidden = 2048, .ffn = 768, .experts = 128}> {
//     using router  = mo::router<mo::softmax, mo::top_k<8>, mo::renormalised>;     // required
//     using experts = mo::gated_mlp<mo::silu>;                                     // the default
//     using shared  = mo::shared_experts<1>;                                       // none by default
//     using losses  = mo::losses<mo::load_balance<>>;                              // none by default
//     using capacity = mo::capacity<std::ratio<5, 4>>;                             // mo::dropless by default
//     static constexpr bool causal = true;      // refuses routers that look at later tokens; false by default
//   };
//
// spec_of<Spec> reads a spec: its sizes and roles, checked once, with one sentence for each mistake.
#pragma once

#include <moiety/capacity/capacity.hpp>
#include <moiety/core/config.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/experts/shared.hpp>
#include <moiety/losses/loss.hpp>
#include <moiety/router/router.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

/// H, I and E of a layer. Besides, how many experts it has that compute nothing: they return what they are given, and a
/// router chooses among all, those with an MLP first (LongCat-Flash). And the latent width L: routed experts work on L values
/// in place of H, between two linear maps of every token (Megatron's moe_latent_size); 0 is none.
struct dims {
  std::int64_t hidden = 0;
  std::int64_t ffn = 0;
  std::int64_t experts = 0;
  std::int64_t zero_experts = 0;
  std::int64_t latent = 0;
  friend constexpr bool operator==(dims const&, dims const&) = default;
};

template <dims Size> struct layer_spec {
  static constexpr dims size = Size;
  static constexpr bool causal = false;
  using router = void;
  using experts = gated_mlp<silu>;
  using shared = no_shared;
  using losses = moiety::losses<>;
  using capacity = dropless;
};

/// Another spec with sizes of its own.
template <class Spec, dims Size> struct resized : Spec { static constexpr dims size = Size; };

namespace detail {
// Names that a spec does not have, but a hand may write.
template <class Spec>
concept names_loss = requires {
  typename Spec::loss;
};
template <class Spec>
concept names_expert = requires {
  typename Spec::expert;
};
template <class Spec>
concept names_shared_experts = requires {
  typename Spec::shared_experts;
};
template <class Spec>
concept names_routers = requires {
  typename Spec::routers;
};
template <class Spec>
concept names_backend = requires {
  typename Spec::backend;
};
template <class Spec>
concept names_element = requires {
  typename Spec::element;
};

}  // namespace detail

template <class Spec> class spec_of {
  using any_router = router<softmax, top_k<1>>;
  using spec_router = typename Spec::router;
  using spec_experts = typename Spec::experts;
  using spec_shared = typename Spec::shared;
  using spec_losses = typename Spec::losses;
  using spec_capacity = typename Spec::capacity;
  static constexpr std::int64_t choices = Spec::size.experts + Spec::size.zero_experts;

  static consteval bool check() {
    static_assert(!detail::names_loss<Spec>, "a spec names its losses 'losses', not 'loss'.");
    static_assert(!detail::names_expert<Spec>, "a spec names its experts 'experts', not 'expert'.");
    static_assert(!detail::names_shared_experts<Spec>,
                  "a spec names its shared experts 'shared', not 'shared_experts'.");
    static_assert(!detail::names_routers<Spec>, "a spec names its router 'router', not 'routers'.");
    static_assert(!detail::names_backend<Spec>,
                  "a spec says what a layer computes: 'backend' belongs in a deployment.");
    static_assert(!detail::names_element<Spec>,
                  "a spec says what a layer computes: 'element' belongs in a deployment.");
    static_assert(is_router<spec_router>,
                  "'using router' in a spec must name a mo::router<score rule, mo::top_k<K>, ...>.");
    static_assert(expert_mlp<spec_experts>,
                  "'using experts' in a spec must name an expert MLP, as mo::gated_mlp<mo::silu>.");
    static_assert(is_shared<spec_shared>, "'using shared' in a spec must name mo::shared_experts<Count, ...>.");
    if constexpr (is_shared<spec_shared>) static_assert(spec_shared::check());
    static_assert(is_losses<spec_losses>, "'using losses' in a spec must name mo::losses<...>.");
    static_assert(is_capacity<spec_capacity>,
                  "'using capacity' in a spec must name mo::dropless or mo::capacity<std::ratio<...>, ...>.");
    static_assert(Spec::size.hidden >= 1 && Spec::size.ffn >= 1 && Spec::size.experts >= 1,
                  "dims needs hidden, ffn and experts of at least 1.");
    static_assert(Spec::size.zero_experts >= 0 && Spec::size.latent >= 0,
                  "dims needs zero_experts and latent of at least 0.");
    if constexpr (is_router<spec_router> && Spec::size.experts >= 1) check_router();
    if constexpr (detail::sound_losses<spec_losses> && Spec::size.experts >= 1)
      static_assert(spec_losses::groups_divide(choices),
                    "the groups of mo::device_balance and mo::communication_balance must divide dims.experts + "
                    "dims.zero_experts.");
    if constexpr (detail::sound_losses<spec_losses> && is_router<spec_router>)
      static_assert(!spec_losses::needs_probabilities || has_probabilities<typename spec_router::score_type>,
                    "a listed loss needs probabilities, which the score rule of this router does not have.");
    if constexpr (detail::sound_losses<spec_losses> && is_router<spec_router>)
      if constexpr (spec_losses::needs_expected_loads) check_noise();
    return true;
  }
  static consteval void check_noise() {
    static_assert(spec_router::has_logit_noise,
                  "a listed loss needs the noise of the router's logits: give the router mo::logit_noise.");
    constexpr bool selects_largest =
        is_top_k<typename spec_router::selection_type> && !spec_router::has_selection_bias && !spec_router::has_groups;
    static_assert(!spec_router::has_logit_noise || selects_largest,
                  "the loads that mo::noisy_load expects are those of mo::top_k, without selection bias and groups.");
  }
  static consteval void check_router() {
    using selection = typename spec_router::selection_type;
    constexpr std::int64_t chosen = spec_router::slots_of(choices);
    static_assert(chosen >= 1 && chosen <= choices, "mo::top_k<K> needs 1 <= K <= dims.experts + dims.zero_experts.");
    static_assert(!Spec::causal || !detail::sees_later_tokens<selection>,
                  "a selection that looks at all tokens of a call, as mo::expert_choice, lets a token's experts depend "
                  "on later tokens: a causal spec cannot use it.");
    if constexpr (is_capacity<spec_capacity>) check_capacity();
    if constexpr (spec_router::has_groups) {
      using groups = typename spec_router::group_type;
      constexpr bool divide = choices % groups::count_of_groups == 0;
      static_assert(divide, "mo::groups<G, Kept> needs G to divide dims.experts + dims.zero_experts.");
      constexpr std::int64_t needed = spec_router::slots;  // 0 where a token may have any number
      static_assert(!divide || needed * groups::count_of_groups <= choices * groups::kept,
                    "the groups that mo::groups keeps have fewer experts than mo::top_k<K> selects.");
    }
  }
  static consteval void check_capacity() {
    constexpr bool any_number = spec_router::couples_tokens && spec_router::slots == every_expert;
    static_assert(
        !spec_capacity::drops || !any_number,
        "mo::capacity needs a selection with a number of slots, as mo::top_k: expert choice and token rounding "
        "bound their loads themselves.");
    if constexpr (spec_capacity::drops) {
      static_assert(!spec_capacity::renormalises || has_probabilities<typename spec_router::score_type> ||
                        spec_router::weight_type::source != weight_source::scores,
                    "mo::renormalise_after_drop needs weights that are not negative.");
      static_assert(!spec_capacity::renormalises || spec_router::slots != 1,
                    "mo::top_k<1> with mo::renormalise_after_drop gives the router no gradient: keep the weights as "
                    "they are.");
    }
  }
  static_assert(check());

 public:
  using router_type = std::conditional_t<is_router<spec_router>, spec_router, any_router>;
  using experts_type = std::conditional_t<expert_mlp<spec_experts>, spec_experts, gated_mlp<silu>>;
  using losses_type = std::conditional_t<detail::sound_losses<spec_losses>, spec_losses, losses<>>;

  using capacity_type = std::conditional_t<is_capacity<spec_capacity>, spec_capacity, dropless>;

  using shared_type = std::conditional_t<is_shared<spec_shared>, spec_shared, no_shared>;
  using shared_mlp = typename shared_type::template mlp_type<experts_type>;

  static constexpr std::int64_t hidden = Spec::size.hidden;
  static constexpr std::int64_t ffn = Spec::size.ffn;
  static constexpr std::int64_t experts = choices;  // that a router chooses among
  static constexpr std::int64_t zero_experts = Spec::size.zero_experts, mlp_experts = Spec::size.experts;
  static constexpr std::int64_t slots = router_type::slots_of(experts);    // k
  static constexpr std::int64_t active = router_type::active_of(experts);  // experts of a token, on average
  /// The most rows that the router asks for in a call of `tokens` tokens: T · k, or what a batch selection can choose.
  static constexpr std::int64_t rows_asked(std::int64_t tokens) { return router_type::rows_of(tokens, experts); }
  /// The most that the experts have: no more than their capacity.
  static constexpr std::int64_t rows(std::int64_t tokens) {
    if constexpr (capacity_type::drops)
      if (!capacity_type::by_sequence)
        return std::min(rows_asked(tokens), experts * capacity_type::of(tokens, slots, experts));
    return rows_asked(tokens);
  }
  static constexpr std::int64_t inputs = experts_type::inputs;

  static constexpr bool has_shared = shared_type::count > 0, shared_gated = shared_type::gated;
  static constexpr std::int64_t shared_ffn = shared_type::width(ffn);  // of all shared experts together
  static constexpr std::int64_t shared_rows(std::int64_t tokens) { return has_shared ? tokens : 0; }

  static constexpr std::int64_t latent = Spec::size.latent;
  static constexpr bool has_latent = latent > 0;
  static constexpr std::int64_t expert_hidden = has_latent ? latent : hidden;  // what routed experts work on
  static constexpr std::int64_t latent_rows(std::int64_t tokens) { return has_latent ? tokens : 0; }

  /// Whether some weights take every token that is dispatched: then these are listed.
  static constexpr bool lists_passing = has_shared || has_latent;
  static constexpr std::int64_t passing_rows(std::int64_t tokens) { return lists_passing ? tokens : 0; }
};

}  // namespace moiety
