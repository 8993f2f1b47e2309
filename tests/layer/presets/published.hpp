// SPDX-License-Identifier: Apache-2.0
// A preset beside what was published of its model: the roles, the sizes of a layer, and the whole model, of which the rest is
// attention, embeddings, norms and dense layers.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include <doctest/doctest.h>

#include <concepts>
#include <cstdint>

namespace published {

template <class...> struct roles;

/// A preset has these roles and no other: no capacity, and nothing said of order in time.
template <class Preset, class Router, class Experts, class Shared, class Losses>
inline constexpr bool composes =
    std::same_as<roles<typename Preset::router, typename Preset::experts, typename Preset::shared,
                       typename Preset::losses, typename Preset::capacity>,
                 roles<Router, Experts, Shared, Losses, moiety::dropless>> &&
    !Preset::causal;

/// The sizes of one layer, as a model's configuration has them. Experts have three matrices.
struct layer {
  std::int64_t hidden, ffn, experts, slots;
  std::int64_t shared_ffn = 0;  // of all shared experts together
  bool shared_gate = false;     // one value a token, from x
  std::int64_t zero_experts = 0;
  bool biases = false;  // in the router and in every product of an expert

  constexpr std::int64_t expert() const { return 3 * hidden * ffn + (biases ? 2 * ffn + hidden : 0); }
  constexpr std::int64_t beside_experts() const {
    return (experts + zero_experts) * (hidden + (biases ? 1 : 0)) + 3 * hidden * shared_ffn +
           (shared_gate ? hidden : 0);
  }
};

/// The preset has the sizes, and the parameters that they make.
template <class Preset> constexpr bool has(layer const& of) {
  moiety::dims const size{
      .hidden = of.hidden, .ffn = of.ffn, .experts = of.experts, .zero_experts = of.zero_experts, .latent = 0};
  return Preset::size == size && moiety::spec_of<Preset>::slots == of.slots &&
         moiety::parameters<Preset> == of.beside_experts() + of.experts * of.expert() &&
         moiety::active_parameters<Preset> == of.beside_experts() + of.slots * of.expert();
}

/// Of the published parameters the MoE layers hold `percent`, of the active ones `active_percent`, both rounded down; not more
/// than all, up to the rounding of what was published.
template <class Preset> void holds(int layers, double total, int percent, double active, int active_percent) {
  double const all = layers * static_cast<double>(moiety::parameters<Preset>);
  double const used = layers * static_cast<double>(moiety::active_parameters<Preset>);
  CHECK(all <= 1.005 * total);
  CHECK(static_cast<int>(100 * all / total) == percent);
  CHECK(used <= 1.005 * active);
  CHECK(static_cast<int>(100 * used / active) == active_percent);
}

/// A small copy trains: gradients equal differences.
template <class Preset, moiety::dims Size> void trains() {
  using small = moiety::resized<Preset, Size>;
  for (auto const& check : moiety::testing::check_gradients<small>(13)) {
    CAPTURE(check.name);
    CHECK(check.error <= moiety::testing::gradient_tolerance);
  }
}

}  // namespace published
