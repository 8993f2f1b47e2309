// SPDX-License-Identifier: Apache-2.0
// A layer's tensors as the rest of this room takes them, and the groups of ranks that hold them. A step:
//
//   auto const groups = mo::groups_of(ctx);
//   auto const parameters = mo::parameters_of(weights, gradients);
//   mo::sharded_adamw<float, mo::thread_communicator> optimiser{groups};
//   …                                                                    forward and backward of all micro-batches
//   auto const list = mo::gradients_of(gradients);                       after backward, in every step
//   mo::reduce_gradients(list, groups);
//   mo::normalise(list, mo::total_weight(ctx.world(), tokens));
//   double const norm = mo::global_norm(ctx, gradients);                 or global_norm(list, groups)
//   mo::clip_gradients(list, 1.0, norm);
//   optimiser.step(parameters, rate, norm);                              then layer.pack(weights), if they are packed
//
// Tensors of experts are held alike by the ranks of expert_data, all others by those of the stage. Weight decay leaves out
// what has no fan in: biases, and the router's noise. Where there are several layers, names have a prefix:
//
//   auto const parameters = [&](auto const& f) {
//     mo::parameters_of(first, first_gradients, "layers.0.")(f);
//     mo::parameters_of(second, second_gradients, "layers.1.")(f);
//   };
//   auto const list = mo::gradients_of<float>(parameters);
//
// A stack of layers (pipeline/moe_stack.hpp), or whatever has for_each(f) as a layer's weights and gradients have, names its
// parameters itself: `parameters` as in the first example, then gradients_of<float>(parameters). Tensors that several stages
// hold (layer/shared_parameters.hpp) are summed over these before reduce_gradients, each stage reduces and updates its own, and
// global_norm(ctx, gradients) counts them once; global_norm(list, groups) would count every stage's.
//
// Weights and gradients of mo::cuda are given as mo::host_copy, see training/host_copy.hpp; for checkpoints see
// training/layer_checkpoint.hpp.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/shared_parameters.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/training/global_norm.hpp>
#include <moiety/training/host_copy.hpp>
#include <moiety/training/replication.hpp>

#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace moiety::inline MOIETY_ABI {

template <class Deployment>
rank_groups<typename context<Deployment>::communicator> groups_of(context<Deployment>& ctx) {
  return {ctx.world(),       ctx.stage(), ctx.data_context(),
          ctx.expert_data(), ctx.tied(),  detail::sums_fastest<Deployment>};
}

namespace detail {

inline replicated ranks_that_hold(parameter const& p) {
  return p.of_experts ? replicated::expert_data : replicated::stage;
}

template <std::floating_point S, class Gradients>
gradient_list<S> list_gradients(Gradients& gradients, std::string const& prefix) {
  gradient_list<S> all;
  gradients.for_each([&](parameter const& p, std::span<S> values) {
    all.push_back({prefix + p.name, values, ranks_that_hold(p)});
  });
  return all;
}

}  // namespace detail

/// The trained tensors of a layer, for optimisers: a function that calls f(trained_tensor) for each. Weights and gradients
/// must outlive it.
template <class Weights, class Gradients>
auto parameters_of(Weights& weights, Gradients& gradients, std::string prefix = {}) {
  return [&weights, &gradients, prefix = std::move(prefix)](auto const& f) {
    for_each_parameter(weights, gradients, [&](parameter const& p, auto values, auto sums) {
      f(trained_tensor{prefix + p.name, values, sums, detail::ranks_that_hold(p), p.fan_in > 0});
    });
  };
}

/// The gradients of a layer; zeros where it has had no backward since the reset.
template <class Spec, scalar T>
gradient_list<sum_t<T>> gradients_of(layer_gradients<Spec, T>& gradients, std::string const& prefix = {}) {
  return detail::list_gradients<sum_t<T>>(gradients, prefix);
}

/// The norm of the gradients of a layer, or of all layers of this rank: of whatever has for_each(f) as a layer's have. A
/// collective of the whole run.
template <class Deployment, class Gradients> double global_norm(context<Deployment>& ctx, Gradients& gradients) {
  static_assert(detail::check_of_host<Deployment, Gradients>());
  shared_parameters const shared(ctx.pipeline(), gradients);
  gradient_list<typename context<Deployment>::sum> counted;
  std::size_t index = 0;
  for (auto& slice : detail::list_gradients<typename context<Deployment>::sum>(gradients, {}))
    if (shared.counts(index++)) counted.push_back(std::move(slice));
  return global_norm(counted, groups_of(ctx));
}

}  // namespace moiety
