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
//
// D is a deployment; T are mo::tokens{count, sequences}. Bytes are those that the allocator hook sees.
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

/// Parameters of `experts` experts.
template <class Spec> constexpr std::int64_t expert_parameters_of(std::int64_t experts) {
  using of = expert_parameters<typename spec_of<Spec>::experts_type, float>;
  return experts * (of::matrix_values(expert_sizes_of<Spec>) + of::bias_values(expert_sizes_of<Spec>));
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

/// Parameters in the element type, with `experts` experts.
template <class Spec> constexpr std::int64_t element_parameters(std::int64_t experts) {
  return shared_parameters<Spec>() + latent_parameters<Spec>() + expert_parameters_of<Spec>(experts);
}

template <class Spec, class RouterType, class ExpertType> constexpr std::int64_t parameter_bytes() {
  return router_parameters<Spec>() * static_cast<std::int64_t>(sizeof(RouterType)) +
         element_parameters<Spec>(spec_of<Spec>::mlp_experts) * static_cast<std::int64_t>(sizeof(ExpertType));
}

}  // namespace detail

template <class Spec>
inline constexpr std::int64_t parameters =
    detail::router_parameters<Spec>() + detail::element_parameters<Spec>(spec_of<Spec>::mlp_experts);

template <class Spec>
inline constexpr std::int64_t active_parameters =
    detail::router_parameters<Spec>() + detail::element_parameters<Spec>(detail::active_experts<Spec>);

template <class Spec> constexpr std::int64_t forward_flops(tokens of) {
  return 2 * of.count * detail::multiplied_values<Spec>();
}
template <class Spec> constexpr std::int64_t backward_flops(tokens of) { return 2 * forward_flops<Spec>(of); }

template <class Spec, class Deployment = deployment<>, class T = detail::element_t<Deployment>>
inline constexpr std::int64_t weight_bytes =
    detail::parameter_bytes<Spec, sum_t<T>, T>() + detail::state_bytes<Spec>() +
    expert_copies<typename spec_of<Spec>::experts_type, T, detail::weight_layout_t<Deployment>>::bytes(
        detail::expert_sizes_of<Spec>) +
    expert_copies<typename spec_of<Spec>::shared_mlp, T, detail::weight_layout_t<Deployment>>::bytes(
        detail::shared_sizes_of<Spec>);

template <class Spec, class Deployment = deployment<>, class T = detail::element_t<Deployment>>
inline constexpr std::int64_t gradient_bytes = detail::parameter_bytes<Spec, sum_t<T>, sum_t<T>>();

template <class Spec, class Deployment = deployment<>> constexpr std::int64_t saved_bytes(tokens of) {
  return tape_plan<Spec, detail::element_t<Deployment>>(of).block.bytes();
}

template <class Spec, class Deployment = deployment<>> constexpr std::int64_t workspace_bytes(tokens of) {
  using T = detail::element_t<Deployment>;
  std::int64_t const infer = infer_workspace<Spec, Deployment>(of) + tape_plan<Spec, T>(of, false).block.bytes();
  std::int64_t const step = pending_plan<Spec, T>(of).block.bytes() + layer_workspace<Spec, Deployment>(of);
  return std::max(infer, step);
}

}  // namespace moiety
