// SPDX-License-Identifier: Apache-2.0
// What the ranks of a stage must have in common to be one layer, as a list of named values: its spec, the options, and of the
// deployment what changes rows.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/hash.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/mesh/agreement.hpp>
#include <moiety/mesh/context.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// Adds a value that a policy of a router names: a table by a checksum, and not at all where it lies in memory of a device.
template <class Deployment, class Policy> struct add_value_of {
  configuration& all;

  template <class V> void operator()(char const* name, V const& value) const {
    std::string const full = sentence("options.router ", Policy::name, '.', name);
    if constexpr (!std::is_same_v<V, std::span<std::int32_t const>>)
      all.add(full.c_str(), value);
    else if constexpr (std::is_same_v<typename backend_of<Deployment>::type, host>)
      all.add(full.c_str(), fnv_1a({reinterpret_cast<char const*>(value.data()), value.size_bytes()}).value());
  }
};

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
  options.router.for_each_policy([&]<class Policy>(Policy const& policy) {
    detail::add_value_of<Deployment, Policy> const add{all};
    if constexpr (requires { policy.for_each_value(add); }) policy.for_each_value(add);
  });
  all.add("options.router.scale", options.router.scale_factor()), all.add("options.loss_scale", options.loss_scale);
  all.add("options.non_finite", options.non_finite ? static_cast<int>(*options.non_finite) : -1);
  options.losses.for_each([&](auto const& loss) { all.add("options.losses.coefficient", loss.coefficient); });
  return all;
}

}  // namespace moiety
