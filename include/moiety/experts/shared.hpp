// SPDX-License-Identifier: Apache-2.0
// Shared experts: an MLP that every token passes besides the experts that it is routed to. As the word `shared` of a spec:
//
//   mo::shared_experts<>                                       y_t += shared(x_t)
//   mo::shared_experts<2>                                      two of them: one MLP of twice the width
//   mo::shared_experts<1, mo::sigmoid_gated>                   y_t += σ(⟨x_t, g⟩) shared(x_t), g [1 × H]
//   mo::shared_experts<1, mo::shared_ffn<5632>>                of a width of their own; dims.ffn by default
//   mo::shared_experts<1, mo::gated_mlp<mo::gelu>>             of a kind of their own; the spec's experts by default
//
// Options stand in any order. Masked tokens, and those that are routed nowhere, pass no shared expert either.
#pragma once

#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/experts/mlp.hpp>

#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

struct sigmoid_gated {};
template <std::int64_t Ffn> struct shared_ffn { static constexpr std::int64_t value = Ffn; };

namespace detail {

template <class O> inline constexpr std::int64_t shared_ffn_of = 0;
template <std::int64_t Ffn> inline constexpr std::int64_t shared_ffn_of<shared_ffn<Ffn>> = Ffn;
template <class O> inline constexpr bool is_shared_ffn = false;
template <std::int64_t Ffn> inline constexpr bool is_shared_ffn<shared_ffn<Ffn>> = true;

template <class O> using shared_ffn_kind = std::bool_constant<is_shared_ffn<O>>;
template <class O> using shared_gate_kind = std::is_same<O, sigmoid_gated>;
template <class O> using shared_mlp_kind = std::bool_constant<expert_mlp<O>>;

}  // namespace detail

template <int Count = 1, class... Options> struct shared_experts {
  static constexpr int count = Count;
  static constexpr bool gated = (detail::shared_gate_kind<Options>::value || ...);

  /// The MLP, given that of the spec's experts.
  template <class Experts>
  using mlp_type = typename detail::find_if<detail::shared_mlp_kind, Experts, Options...>::type;

  /// The width of all of them together.
  static constexpr std::int64_t width(std::int64_t ffn) {
    std::int64_t const own = (std::int64_t{0} + ... + detail::shared_ffn_of<Options>);
    return Count * (own != 0 ? own : ffn);
  }

  static consteval bool check() {
    static_assert(
        ((detail::shared_gate_kind<Options>::value || detail::is_shared_ffn<Options> || expert_mlp<Options>)&&...),
        "mo::shared_experts was given an option that is no mo::shared_ffn<I>, mo::sigmoid_gated or expert MLP.");
    static_assert(detail::count_if<detail::shared_gate_kind, Options...> <= 1 &&
                      detail::count_if<detail::shared_ffn_kind, Options...> <= 1 &&
                      detail::count_if<detail::shared_mlp_kind, Options...> <= 1,
                  "mo::shared_experts takes at most one option of a kind.");
    static_assert(Count >= 1 && ((!detail::is_shared_ffn<Options> || detail::shared_ffn_of<Options> >= 1) && ...),
                  "mo::shared_experts needs at least one expert of a width of at least 1.");
    return true;
  }
};

/// Of a spec without shared experts, the default.
struct no_shared {
  static constexpr int count = 0;
  static constexpr bool gated = false;
  template <class Experts> using mlp_type = Experts;
  static constexpr std::int64_t width(std::int64_t) { return 0; }
  static consteval bool check() { return true; }
};

template <class T> inline constexpr bool is_shared = std::is_same_v<T, no_shared>;
template <int Count, class... Options> inline constexpr bool is_shared<shared_experts<Count, Options...>> = true;

}  // namespace moiety
