// SPDX-License-Identifier: Apache-2.0
// What a layer costs, as constexpr functions of its spec.
//
//   parameters<Spec>             E H + E (inputs + 1) H I, and E (inputs · I + H) of biased experts, E of a biased router,
//                                E H of learned noise; shared experts count as one expert of their own width, their gate H;
//                                zero-compute experts add H each to the router, and count as experts where a token may use k
//                                maps of a latent width count 2 H L, and H of routed experts is L then
//   active_parameters<Spec>      the same with the experts that one token has in place of E
//   forward_flops<Spec>(T)       2 T (E H + k (inputs + 1) H I): multiplications and additions of all products;
//                                with E H of learned noise, which infer leaves out
//   backward_flops<Spec>(T)      twice forward: input and weight gradients
//   weight_bytes<Spec, D>        what make_weights allocates, packed copies included   gradient_bytes<Spec, D>    what make_gradients does
//   saved_bytes<Spec, D>(T)      what a tape allocates; it also refers to x
//   workspace_bytes<Spec, D>(T)  the most that forward, infer or backward hold besides the tape while they run
//   bytes_of_rank<Spec, D>(layout, T)   these four, of a rank with its share of the experts and T of the tokens
//
// D is a deployment; T are mo::tokens{count, sequences}. Bytes are those that the allocator hook sees, of a rank that holds
// every expert. bytes_of_rank takes the rows that even loads bring to a rank's experts, or of mo::padded_all_to_all the most that
// may come, and counts none that are on their way or that mo::keep_rows keeps. It throws config_error as a layer there does.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/expert_parameters.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/product_room.hpp>
#include <moiety/layer/spec.hpp>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

namespace detail {

template <class Spec>
inline constexpr expert_sizes expert_sizes_of{spec_of<Spec>::mlp_experts, spec_of<Spec>::expert_hidden,
                                              spec_of<Spec>::ffn};

/// The most experts with an MLP that a token has, where it has as many as on average.
template <class Spec>
inline constexpr std::int64_t active_experts = std::min(spec_of<Spec>::active, spec_of<Spec>::mlp_experts);

template <class Spec>
inline constexpr std::int64_t router_matrices = has_learned_noise<typename spec_of<Spec>::router_type> ? 2 : 1;

/// Parameters of the router, and of the gate of shared experts.
template <class Spec> constexpr std::int64_t router_parameters() {
  using spec = spec_of<Spec>;
  return router_matrices<Spec> * spec::experts * spec::hidden +
         (has_linear_bias<typename spec::router_type> ? spec::experts : 0) + (spec::shared_gated ? spec::hidden : 0);
}

template <class Spec>
inline constexpr expert_sizes shared_sizes_of{spec_of<Spec>::has_shared ? 1 : 0, spec_of<Spec>::hidden,
                                              spec_of<Spec>::shared_ffn};

/// Parameters of the shared experts, without their gate; of these, those in matrices.
template <class Spec> constexpr std::int64_t shared_parameters(bool with_biases = true) {
  using of = expert_parameters<typename spec_of<Spec>::shared_mlp, float>;
  constexpr expert_sizes sizes = shared_sizes_of<Spec>;
  return sizes.experts * (of::matrix_values(sizes) + (with_biases ? of::bias_values(sizes) : 0));
}

/// Parameters of the maps around experts of a latent width.
template <class Spec> constexpr std::int64_t latent_parameters() {
  return 2 * spec_of<Spec>::hidden * spec_of<Spec>::latent;
}

template <class Spec> constexpr std::int64_t expert_parameters_of(expert_sizes const& held) {
  using of = expert_parameters<typename spec_of<Spec>::experts_type, float>;
  return held.experts * (of::matrix_values(held) + of::bias_values(held));
}

/// Values that a token is multiplied with.
template <class Spec> constexpr std::int64_t multiplied_values() {
  using spec = spec_of<Spec>;
  using of = expert_parameters<typename spec::experts_type, float>;
  return (router_matrices<Spec> * spec::experts + (spec::shared_gated ? 1 : 0)) * spec::hidden +
         shared_parameters<Spec>(false) + latent_parameters<Spec>() +
         active_experts<Spec> * of::matrix_values(expert_sizes_of<Spec>);
}

template <class Spec> constexpr std::int64_t state_bytes() {
  constexpr bool selects = has_selection_bias<typename spec_of<Spec>::router_type>;
  return selects ? spec_of<Spec>::experts * static_cast<std::int64_t>(sizeof(float)) : 0;
}

/// Parameters in the element type, with these experts.
template <class Spec> constexpr std::int64_t element_parameters(expert_sizes const& held = expert_sizes_of<Spec>) {
  return shared_parameters<Spec>() + latent_parameters<Spec>() + expert_parameters_of<Spec>(held);
}

template <class Spec, class RouterType, class ExpertType>
constexpr std::int64_t parameter_bytes(expert_sizes const& held) {
  return router_parameters<Spec>() * static_cast<std::int64_t>(sizeof(RouterType)) +
         element_parameters<Spec>(held) * static_cast<std::int64_t>(sizeof(ExpertType));
}

template <class Spec, class Deployment, class T> constexpr std::int64_t weight_bytes_of(expert_sizes const& held) {
  using spec = spec_of<Spec>;
  using layout = weight_layout_t<Deployment>;
  return parameter_bytes<Spec, sum_t<T>, T>(held) + state_bytes<Spec>() +
         expert_copies<typename spec::experts_type, T, layout>::bytes(held) +
         expert_copies<typename spec::shared_mlp, T, layout>::bytes(shared_sizes_of<Spec>);
}

}  // namespace detail

template <class Spec>
inline constexpr std::int64_t parameters = detail::router_parameters<Spec>() + detail::element_parameters<Spec>();

template <class Spec>
inline constexpr std::int64_t active_parameters =
    detail::router_parameters<Spec>() + detail::element_parameters<Spec>({detail::active_experts<Spec>,
                                                                          spec_of<Spec>::expert_hidden,
                                                                          spec_of<Spec>::ffn});

template <class Spec> constexpr std::int64_t forward_flops(tokens of) {
  return 2 * of.count * detail::multiplied_values<Spec>();
}
template <class Spec> constexpr std::int64_t backward_flops(tokens of) { return 2 * forward_flops<Spec>(of); }

template <class Spec, class Deployment = deployment<>, class T = detail::element_t<Deployment>>
inline constexpr std::int64_t weight_bytes =
    detail::weight_bytes_of<Spec, Deployment, T>(detail::expert_sizes_of<Spec>);

template <class Spec, class Deployment = deployment<>, class T = detail::element_t<Deployment>>
inline constexpr std::int64_t gradient_bytes =
    detail::parameter_bytes<Spec, sum_t<T>, sum_t<T>>(detail::expert_sizes_of<Spec>);

template <class Spec, class Deployment = deployment<>> constexpr std::int64_t saved_bytes(tokens of) {
  using T = detail::element_t<Deployment>;
  std::int64_t const values = of.arrived < 0 ? 0 : of.arrived * spec_of<Spec>::inputs * expert_ffn_of<Spec>(of);
  return tape_plan<Spec, T>(of).block.bytes() + values * static_cast<std::int64_t>(sizeof(T));
}

template <class Spec, class Deployment = deployment<>> constexpr std::int64_t workspace_bytes(tokens of) {
  using T = detail::element_t<Deployment>;
  std::int64_t const infer = infer_workspace<Spec, Deployment>(of) + tape_plan<Spec, T>(of, false).block.bytes();
  std::int64_t const step = pending_plan<Spec, T>(of).block.bytes() + layer_workspace<Spec, Deployment>(of);
  return std::max(infer, step);
}

namespace detail {

/// With the rows that arrive at the experts of a rank, where only forward knows them.
template <class Spec, class Deployment> constexpr tokens on_rank(layout const& shape, tokens of) {
  using spec = spec_of<Spec>;
  if constexpr (counts_rows<Spec, Deployment>) {
    of.ffn = spec::ffn / shape.expert_tensor;
    of.arrived = shape.expert_tensor * spec::rows(of.count);
    if constexpr (pads_rows<Deployment> && spec::capacity_type::drops)
      of.arrived = spec::mlp_experts / shape.expert * padded_limits<Spec, Deployment>(shape).from_all;
  }
  return of;
}

}  // namespace detail

struct layer_bytes {
  std::int64_t weights, gradients, saved, workspace;
};

template <class Spec, class Deployment> layer_bytes bytes_of_rank(layout const& shape, tokens of) {
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  expert_share const share = detail::share_of<Spec, Deployment>(shape, 0, 0);
  expert_sizes const held{share.experts.count, spec_of<Spec>::expert_hidden, share.ffn.count};
  tokens const here = detail::on_rank<Spec, Deployment>(shape, of);
  return {detail::weight_bytes_of<Spec, Deployment, T>(held), detail::parameter_bytes<Spec, S, S>(held),
          saved_bytes<Spec, Deployment>(here), workspace_bytes<Spec, Deployment>(here)};
}

}  // namespace moiety
