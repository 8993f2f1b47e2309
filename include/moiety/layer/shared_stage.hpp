// SPDX-License-Identifier: Apache-2.0
// Shared experts, see experts/shared.hpp: a layer of one expert that every dispatched token goes to, by the kernels of the
// routed experts, with the gate of a token in place of a router's weight.
//
//   forward            x → what the routed experts add to, in the sum type [T × H]; 0 for tokens that pass none
//   backward_input     dy → added to the sum-type part of dx: rows of the experts first, then what the gate read
//   backward_weights   gradients of the experts, and of the gate
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/router_gemm.hpp>
#include <moiety/kernels/row_weights.hpp>
#include <moiety/kernels/token_gate.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/product_room.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment> class shared_stage {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using engine_type = typename backend::engine;
  using products = typename detail::policy_of<typename Deployment::expert_products, backend, grouped_products>::type;
  using mlp = typename read::shared_mlp;
  using apply = typename products::template apply<mlp, backend>;
  using tape_type = layer_tape<Spec, T>;
  static constexpr bool gated = read::shared_gated, biased = pending_plan<Spec, T>::shared_biased;

 public:
  /// `work` is that of forward_plan. Gives the sums.
  template <class Weights>
  static S* forward(engine_type& engine, Weights const& weights, tape_type const& tape, buffer const& work, bool keep) {
    forward_plan<Spec, T> const plan(tape.size());
    permutation_view const& order = tape.passing();
    if constexpr (gated) {
      kernels::router_logits<T>(engine, tape.x, weights.shared_gate(), column(tape.shared_gates(), order.tokens));
      kernels::gate_tokens<S>(engine, order.tokens, tape.shared_gates());
    }
    T* const output = detail::at<T>(work, plan.output);
    S* const sums = detail::at<S>(work, plan.shared_sums);
    apply::forward(engine, rows_of(order, room_in<Spec, Deployment>(work, tape.size(), layer_pass::forward)),
                   local::dispatch(tape.x, order), weights.shared_operands(), keep ? tape.shared_before() : nullptr,
                   detail::at<T>(work, plan.activation), output);
    kernels::combine_sums<T>(engine, order, by_token(output, order), gated ? tape.shared_gates() : nullptr, nullptr,
                             by_token(sums, order));
    return sums;
  }

  /// `work` is that of backward_plan; dx [T × H] is added to.
  template <class Weights>
  static void backward_input(engine_type& engine, Weights const& weights, tape_type const& tape, buffer const& work,
                             S* dx) {
    pending_plan<Spec, T> const kept(tape.size());
    backward_plan<Spec, T, backend> const plan(tape.size());
    permutation_view const& order = tape.passing();
    S* const row_weights = row_weights_of(tape, work);
    S* const parts = gated ? detail::at<S>(work, plan.weight_parts) : nullptr;
    T* const dx_rows = detail::at<T>(work, plan.shared_inputs);
    if (gated) kernels::spread_weights<S>(engine, order, tape.shared_gates(), row_weights);
    apply::backward_input(engine,
                          rows_of(order, room_in<Spec, Deployment>(work, tape.size(), layer_pass::backward_input)),
                          local::dispatch(tape.dy, order), weights.shared_operands(), tape.shared_before(), row_weights,
                          detail::at<T>(tape.pending, kept.shared_before),
                          detail::at<T>(tape.pending, kept.shared_activation), parts, dx_rows);
    kernels::combine_sums<T>(engine, order, by_token(dx_rows, order), nullptr, dx, by_token(dx, order));
    if constexpr (gated) {
      S* const dlogits = detail::at<S>(tape.pending, kept.shared_logits);
      kernels::gather_weight_gradients<S>(engine, order, parts, parts_of_gate, dlogits);
      kernels::gate_logit_gradients<S>(engine, order, tape.shared_gates(), dlogits);
      kernels::add_gate_inputs<S>(engine, dlogits, weights.shared_gate().data(), by_token(dx, order));
    }
  }

  template <class Gradients>
  static void backward_weights(engine_type& engine, tape_type const& tape, Gradients& gradients, bool accumulate) {
    pending_plan<Spec, T> const kept(tape.size());
    permutation_view const& order = tape.passing();
    bias_factors<S> factors;
    if (biased) factors = {row_weights_of(tape, tape.pending), detail::at<S>(tape.pending, kept.one)};
    apply::backward_weights(engine, rows_of(order), local::dispatch(tape.x, order), local::dispatch(tape.dy, order),
                            detail::at<T>(tape.pending, kept.shared_before),
                            detail::at<T>(tape.pending, kept.shared_activation), gradients.shared(), accumulate,
                            factors);
    if constexpr (gated)
      kernels::router_weight_gradient<T>(engine, column(detail::at<S>(tape.pending, kept.shared_logits), order.tokens),
                                         tape.x, order.source_tokens, order.starts, gradients.shared_gate(),
                                         accumulate);
  }

 private:
  static constexpr std::int64_t parts_of_gate = weight_parts<mlp, S, backend>(read::shared_ffn);

  static expert_rows rows_of(permutation_view const& order, void* room = nullptr) {
    return {1, order.offsets(), read::hidden, read::shared_ffn, order.tokens, room};
  }
  template <class V> static matrix_view<V> by_token(V* values, permutation_view const& order) {
    return {values, order.tokens, read::hidden};
  }
  static matrix_view<S> column(S* values, std::int64_t tokens) { return {values, tokens, 1}; }

  /// Where the gates of rows stand: with biases the weight half needs them too. Null where there is no gate.
  static S* row_weights_of(tape_type const& tape, buffer const& work) {
    if (!gated) return nullptr;
    if (biased) return detail::at<S>(tape.pending, pending_plan<Spec, T>(tape.size()).shared_row_weights);
    return detail::at<S>(work, backward_plan<Spec, T, backend>(tape.size()).row_weights);
  }
};

}  // namespace moiety
