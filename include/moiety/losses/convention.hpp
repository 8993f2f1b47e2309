// SPDX-License-Identifier: Apache-2.0
// How other systems scale the load-balance loss, and what one of their coefficients is here.
//
// With B_l the value of mo::load_balance in layer l of L (see load_balance.hpp), the terms that systems add to the loss
// that is trained are, before their coefficient, with f_e = c_e / T and P_e = Σ_t p_te / T over T tokens:
//
//   convention    formula                                                       at the same routing     balanced
//   unit          Σ_l E / k · Σ_e f_e P_e                                       Σ_l B_l                 L
//                   ours; Switch, Megatron-LM, OLMo-core, DeepSeek-V2 and V3
//   huggingface   E · Σ_e f_e P_e over the rows of all layers as one batch      k / L · Σ_l B_l         k
//                   transformers, load_balancing_loss_func
//   gshard        Σ_l 1/E · Σ_e f_e P_e, f of first choices                     1 / E² · Σ_l B_l        L / E²
//                   GShard (arXiv 2006.16668), algorithm 1
//   deepspeed     Σ_l E² / k · mean_e (f_e P_e); of first choices where k = 2   Σ_l B_l                 L
//                   DeepSpeed-MoE, top1gating, top2gating, topkgating
//   nanotron      Σ_l E / (L k) · Σ_e f_e P_e                                   1 / L · Σ_l B_l         1
//                   swiss-ai/nanotron, branch moe; MegaBlocks
//
// The ratios are exact, with two provisos that no ratio can mend. Hugging Face lets layers offset one another: its value is
// k B where L = 1 or the layers are loaded alike, and less where one layer's load fills the gaps of another. Where a system
// counts first choices alone and k > 1, B is that of first choices too: with k = 1.
//
//   mo::convert_coefficient<mo::convention::huggingface, mo::convention::unit>(0.001, {.slots = 8, .layers = 48})
//
// gives the coefficient that makes the same term of the loss: c_to = c_from · ratio_from / ratio_to, to within one unit in
// the last place. It is for layers that each have that coefficient, as here. config_error for sizes that cannot be.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <concepts>
#include <cstdint>
#include <numeric>

namespace moiety::inline MOIETY_ABI {

/// What conventions depend on: experts E, slots k of a token, MoE layers L of the model.
struct loss_shape {
  std::int64_t experts = 1;
  std::int64_t slots = 1;
  std::int64_t layers = 1;
};

/// A system's value over that of unit, as numerator / denominator.
struct loss_ratio {
  std::int64_t numerator = 1;
  std::int64_t denominator = 1;
  constexpr double value() const { return static_cast<double>(numerator) / static_cast<double>(denominator); }
  friend constexpr bool operator==(loss_ratio const&, loss_ratio const&) = default;
};

namespace convention {
struct unit {
  static constexpr loss_ratio ratio(loss_shape const&) { return {1, 1}; }
};
struct huggingface {
  static constexpr loss_ratio ratio(loss_shape const& of) { return {of.slots, of.layers}; }
};
struct gshard {
  static constexpr loss_ratio ratio(loss_shape const& of) { return {1, of.experts * of.experts}; }
};
struct deepspeed {
  static constexpr loss_ratio ratio(loss_shape const&) { return {1, 1}; }
};
struct nanotron {
  static constexpr loss_ratio ratio(loss_shape const& of) { return {1, of.layers}; }
};
}  // namespace convention

template <class C>
concept loss_convention = requires(loss_shape const of) {
  { C::ratio(of) } -> std::same_as<loss_ratio>;
};

template <loss_convention From, loss_convention To>
constexpr double convert_coefficient(double coefficient, loss_shape const& of) {
  if (of.experts < 1 || of.slots < 1 || of.layers < 1)
    throw config_error(detail::sentence("a convention needs at least 1 expert, slot and layer, but was given ",
                                        of.experts, ", ", of.slots, " and ", of.layers, '.'));
  loss_ratio const from = From::ratio(of), to = To::ratio(of);
  // Common factors first: what is left is small, and often a power of two.
  std::int64_t const above = std::gcd(from.numerator, to.numerator), below = std::gcd(from.denominator, to.denominator);
  std::int64_t const up = from.numerator / above * (to.denominator / below);
  std::int64_t const down = from.denominator / below * (to.numerator / above);
  std::int64_t const common = std::gcd(up, down);
  return coefficient * static_cast<double>(up / common) / static_cast<double>(down / common);
}

}  // namespace moiety
