// SPDX-License-Identifier: Apache-2.0
// Room in the workspace for products that want some, as those of 8 bits do for the rows that they quantise, and a router's for
// the parts of what they split.
//
//   product_room<Spec, D>(T, pass)    bytes of a pass: the most of routed experts, of shared ones and of the router
//   layer_workspace<Spec, D>(T)       of forward and of both halves, in turn: each one's plan, and its room behind it
//
// All ask for the same block (memory_plan.hpp), at whose end the room lies, in whole blocks of alignment.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/spec.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

enum class layer_pass { forward, backward_input, backward_weights };

namespace detail {

template <class Spec, class Deployment> constexpr std::int64_t expert_room(tokens of, layer_pass pass) {
  using spec = spec_of<Spec>;
  using products = typename Deployment::expert_products;
  using backend = typename Deployment::backend;
  if constexpr (requires { products::wants_room; }) {
    if (pass == layer_pass::backward_weights) return 0;
    using experts = typename products::template apply<typename spec::experts_type, backend>;
    using shared = typename products::template apply<typename spec::shared_mlp, backend>;
    bool const backward = pass == layer_pass::backward_input;
    std::int64_t const routed =
        experts::room_bytes(expert_rows_of<Spec>(of), spec::expert_hidden, expert_ffn_of<Spec>(of), backward);
    if (!spec::has_shared) return routed;
    return std::max(routed, shared::room_bytes(spec::shared_rows(of.count), spec::hidden, spec::shared_ffn, backward));
  }
  return 0;
}

template <class Deployment> inline constexpr bool router_wants_room = requires {
  typename Deployment::router_products::room;
};
template <class Spec, class Deployment> constexpr std::int64_t router_room(tokens of, layer_pass pass) {
  using spec = spec_of<Spec>;
  if constexpr (router_wants_room<Deployment>) {
    using room = typename Deployment::router_products::room;
    constexpr std::int64_t matrices = has_learned_noise<typename spec::router_type> ? 2 : 1;
    if (pass == layer_pass::forward) return room::logits(spec::hidden, spec::experts);
    if (pass == layer_pass::backward_input)
      return room::input_gradient(of.count, spec::hidden, spec::experts, matrices);
    return room::weight_gradient(of.count, spec::hidden, spec::experts);
  }
  return 0;
}

}  // namespace detail

template <class Spec, class Deployment> constexpr std::int64_t product_room(tokens of, layer_pass pass) {
  return detail::whole_blocks(
      std::max(detail::expert_room<Spec, Deployment>(of, pass), detail::router_room<Spec, Deployment>(of, pass)));
}

template <class Spec, class Deployment> constexpr std::int64_t infer_workspace(tokens of) {
  using T = detail::element_t<Deployment>;
  return forward_plan<Spec, T>(of).block.bytes() + product_room<Spec, Deployment>(of, layer_pass::forward);
}

template <class Spec, class Deployment> constexpr std::int64_t layer_workspace(tokens of) {
  using T = detail::element_t<Deployment>;
  std::int64_t const forward = forward_plan<Spec, T>(of).block.bytes(),
                     backward = backward_plan<Spec, T, typename Deployment::backend>(of).block.bytes();
  auto const room = [of](layer_pass pass) { return product_room<Spec, Deployment>(of, pass); };
  return std::max({forward + room(layer_pass::forward), backward + room(layer_pass::backward_input),
                   forward + room(layer_pass::backward_weights)});
}

/// Where the room lies in a workspace. Throws state_error where that is not aligned as all memory is.
template <class Spec, class Deployment> void* room_in(buffer const& work, tokens of, layer_pass pass) {
  std::int64_t const bytes = product_room<Spec, Deployment>(of, pass), begin = work.bytes() - bytes;
  if (bytes == 0) return nullptr;
  detail::require<state_error>(begin == detail::whole_blocks(begin), "the room of products begins at byte ", begin,
                               " of a workspace, which is no multiple of ", memory_alignment, '.');
  return static_cast<std::byte*>(work.data()) + begin;
}

}  // namespace moiety
