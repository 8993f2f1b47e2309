// SPDX-License-Identifier: Apache-2.0
// What the ranks of a stage must have in common to be one layer, as a list of named values: its spec, the options, and of the
// deployment what changes rows.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/mesh/agreement.hpp>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// The values of the library's own policies of a router.
template <class Policy> void add_policy(configuration& all, Policy const& policy) {
  if constexpr (requires { policy.check(); }) {
    if constexpr (requires { policy.rate, policy.centred; })
      all.add("options.router rate", policy.rate), all.add("options.router centred", policy.centred);
    if constexpr (requires { policy.momentum; }) all.add("options.router momentum", policy.momentum);
    if constexpr (requires { policy.epsilon; }) all.add("options.router epsilon", policy.epsilon);
    if constexpr (requires { policy.floor; }) all.add("options.router floor", policy.floor);
    if constexpr (requires { policy.value; }) all.add("options.router value", policy.value);
    if constexpr (requires { policy.key.value; }) all.add("options.router key", policy.key.value);
  }
}

}  // namespace detail

template <class Spec, class Deployment> configuration configuration_of(layer_options<Spec> const& options) {
  using read = spec_of<Spec>;
  configuration all;
  all.add("dims.hidden", read::hidden), all.add("dims.ffn", read::ffn), all.add("dims.experts", read::mlp_experts);
  all.add("dims.zero_experts", read::zero_experts), all.add("dims.latent", read::latent);
  all.add("router", detail::words_of_type<typename read::router_type>());
  all.add("experts", detail::words_of_type<typename read::experts_type>());
  all.add("shared", detail::words_of_type<typename read::shared_type>());
  all.add("losses", detail::words_of_type<typename read::losses_type>());
  all.add("capacity", detail::words_of_type<typename read::capacity_type>());
  all.add("element", name_of<detail::element_t<Deployment>>), all.add("dispatcher", Deployment::dispatcher::name);
  all.add("numerics", detail::sums_fastest<Deployment> ? "fastest" : "invariant");
  if constexpr (requires { options.router.bias(); }) detail::add_policy(all, options.router.bias());
  if constexpr (requires { options.router.jitter(); }) detail::add_policy(all, options.router.jitter());
  if constexpr (requires { options.router.noise(); }) detail::add_policy(all, options.router.noise());
  all.add("options.router.scale", options.router.scale_factor()), all.add("options.loss_scale", options.loss_scale);
  all.add("options.non_finite", options.non_finite ? static_cast<int>(*options.non_finite) : -1);
  options.losses.for_each([&](auto const& loss) { all.add("options.losses.coefficient", loss.coefficient); });
  return all;
}

}  // namespace moiety
