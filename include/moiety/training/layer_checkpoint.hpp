// SPDX-License-Identifier: Apache-2.0
// A layer's weights and an optimiser's states as slices of logical tensors, for training/checkpoint.hpp: what one layout
// saved, any other loads.
//
//   auto const slices = [&] {
//     auto all = mo::slices_of(ctx, weights, "layers.0.");                   layers.0.experts.up, …; states of the router too
//     auto const states = mo::state_slices_of(ctx, weights, optimiser, "layers.0.");
//     all.insert(all.end(), states.begin(), states.end());                   layers.0.experts.up.first_moment, .second_moment, .master
//     return all;
//   };
//   mo::save_checkpoint(ctx.world(), path, slices(), {{"step", std::to_string(optimiser.steps())}});
//
//   optimiser.prepare(parameters);                                           with other weights, perhaps on another layout
//   auto const metadata = mo::load_checkpoint(ctx.world(), path, slices());
//   optimiser.resume(std::stoll(metadata.at("step")));                       then layer.pack(weights), if they are packed
//
// Prefixes are those of parameters_of, see training/layer_tensors.hpp. A stack of layers names its parameters itself, so a
// whole model, each rank with its layers, is saved and loaded in one call on any number of stages. A rank writes what others
// hold too if it is the first of them. Both functions are collectives of the ranks of a pipeline. Slices of const weights are to be
// saved, not to be loaded. state_error for an optimiser without states of the layer: one that is not prepared.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/shared_parameters.hpp>
#include <moiety/mesh/context.hpp>
#include <moiety/training/checkpoint.hpp>
#include <moiety/training/host_copy.hpp>
#include <moiety/training/layer_tensors.hpp>
#include <moiety/training/tensor_slice.hpp>
#include <moiety/training/tensor_type.hpp>

#include <cstddef>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// This rank's part of a parameter, or of a tensor of its shape.
template <class V> tensor_slice part_slice(std::string name, parameter const& p, std::span<V> values, bool owner) {
  tensor_slice part{.name = std::move(name), .type = type_of_values<std::remove_const_t<V>>, .shape = p.shape};
  for (range_of const& axis : p.part) {
    part.first.push_back(axis.first);
    part.count.push_back(axis.count);
  }
  part.values = const_cast<std::remove_const_t<V>*>(values.data());
  part.owner = owner;
  return part;
}

}  // namespace detail

template <class Deployment, class Weights>
std::vector<tensor_slice> slices_of(context<Deployment>& ctx, Weights& weights, std::string const& prefix = {}) {
  static_assert(detail::check_of_host<Deployment, Weights>());
  auto const groups = groups_of(ctx);
  shared_parameters const shared(ctx.pipeline(), weights);
  std::vector<tensor_slice> all;
  for_each_parameter(weights, [&](parameter const& p, auto values) {
    bool const first = groups.of(detail::ranks_that_hold(p)).rank() == 0 && shared.counts(all.size());
    all.push_back(detail::part_slice(prefix + p.name, p, values, first));
  });
  return all;
}

template <class Deployment, class Weights, class Optimiser>
std::vector<tensor_slice> state_slices_of(context<Deployment>& ctx, Weights const& weights, Optimiser& optimiser,
                                          std::string const& prefix = {}) {
  auto const groups = groups_of(ctx);
  shared_parameters const shared(ctx.pipeline(), weights);
  std::vector<tensor_slice> all;
  std::size_t index = 0;
  std::map<std::string, int> holders;  // of a name, on this rank
  bool trained = false, found = false;
  for_each_parameter(weights, [&](parameter const& p, auto) {
    std::string const name = prefix + p.name;
    bool const counts = shared.counts(index++), first = groups.of(detail::ranks_that_hold(p)).rank() == 0;
    trained = trained || p.trained;
    int const holder = holders[name]++;
    int tensor = -1;
    optimiser.for_each_state([&](auto const& state) {
      if (state.tensor != name) return;
      if (state.kind == "first_moment") ++tensor;
      if (tensor != holder) return;
      found = true;
      bool const sliced = state.range.count < state.size;  // then no other rank of the stage has it
      tensor_slice const part =
          detail::part_slice(name + '.' + std::string(state.kind), p, state.values, counts && (first || sliced));
      auto boxes = detail::boxes_of(part, state.range, state.values.data());
      all.insert(all.end(), std::move_iterator(boxes.begin()), std::move_iterator(boxes.end()));
    });
  });
  detail::require<state_error>(found || !trained, "the optimiser has no state of any tensor ", prefix,
                               "…: it was not prepared, or with other tensors.");
  return all;
}

}  // namespace moiety
