// SPDX-License-Identifier: Apache-2.0
// The second half of a forward, and its backward: rows to their experts, the experts' MLPs, and back to tokens.
//
//   forward            x, routing → y                          y_t = base_t + Σ_j w_tj expert_j(x_t); base may be null
//   backward_input     dy → gradients of z and of the weights, and of the rows that experts read
//   combine_input      gradients of rows → dx                  on top of what else reached x
//   backward_weights   gradients of z → those of the parameters
//
// Where the router's weights multiply what experts read (mo::on_input), rows are copies with their weights, made again in
// the weight half.
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/identity_rows.hpp>
#include <moiety/kernels/input_weights.hpp>
#include <moiety/kernels/row_weights.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment> class expert_stage {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using engine_type = typename backend::engine;
  using products = typename detail::policy_of<typename Deployment::expert_products, backend, grouped_products>::type;
  using apply = typename products::template apply<typename read::experts_type, backend>;
  using dispatcher = typename Deployment::dispatcher;
  using tape_type = layer_tape<Spec, T>;
  static constexpr weight_place place = read::router_type::place;
  static constexpr bool biased = pending_plan<Spec, T>::biased;

 public:
  /// `work` is that of forward_plan.
  template <class Weights>
  static void forward(engine_type& engine, Weights const& weights, tape_type const& tape, buffer const& work, bool keep,
                      S const* base, matrix_view<T> y) {
    forward_plan<Spec, T> const plan(tape.size());
    permutation_view const& order = tape.permutation();
    T* const output = detail::at<T>(work, plan.output);
    S* const row_weights = place == weight_place::activation ? detail::at<S>(work, plan.row_weights) : nullptr;
    if (row_weights != nullptr) kernels::spread_weights<S>(engine, order, tape.routing().weights, row_weights);
    kernels::rows_of<T> const read_rows = inputs_of(engine, tape, work);
    apply::forward(engine, rows_of(order), read_rows, weights.operands(), keep ? tape.pre_activation() : nullptr,
                   detail::at<T>(work, plan.activation), output, row_weights);
    if constexpr (read::zero_experts > 0)
      kernels::pass_rows<T>(engine, order, read::mlp_experts, read_rows, row_weights, all_rows(output, order));
    S const* const by_slot = place == weight_place::output ? tape.routing().weights : nullptr;
    kernels::combine<T>(engine, order, all_rows(output, order), by_slot, base, y);
  }

  /// `work` is that of backward_plan, `pending` that of pending_plan.
  template <class Weights>
  static void backward_input(engine_type& engine, Weights const& weights, tape_type const& tape, buffer const& work) {
    pending_plan<Spec, T> const kept(tape.size());
    backward_plan<Spec, T, backend> const plan(tape.size());
    permutation_view const& order = tape.permutation();
    S* const row_weights = row_weights_of(tape, work);
    S* const parts = place == weight_place::input ? nullptr : detail::at<S>(work, plan.weight_parts);
    S* const dweights = detail::at<S>(work, plan.weights);
    T* const dx_rows = detail::at<T>(work, plan.row_inputs);
    if (row_weights != nullptr) kernels::spread_weights<S>(engine, order, tape.routing().weights, row_weights);
    apply::backward_input(engine, rows_of(order), dispatcher::dispatch(tape.expert_dy(), order), weights.operands(),
                          tape.pre_activation(), row_weights, detail::at<T>(tape.pending, kept.pre_activation),
                          detail::at<T>(tape.pending, kept.activation), parts, dx_rows);
    if constexpr (read::zero_experts > 0)
      kernels::pass_rows_backward<T>(engine, order, read::mlp_experts, dispatcher::dispatch(tape.expert_dy(), order),
                                     dispatcher::dispatch(tape.expert_x(), order), row_weights, parts, parts_of_weight,
                                     all_rows(dx_rows, order));
    if (parts != nullptr)
      kernels::gather_weight_gradients<S>(engine, order, parts, parts_of_weight, dweights);
    else
      kernels::input_weight_gradients<T>(engine, order, all_rows(dx_rows, order), tape.expert_x(), dweights);
  }

  /// base [T × H] is what else reached x.
  static void combine_input(engine_type& engine, tape_type const& tape, buffer const& work, S const* base,
                            matrix_view<T> dx) {
    backward_plan<Spec, T, backend> const plan(tape.size());
    permutation_view const& order = tape.permutation();
    S const* const by_slot = place == weight_place::input ? tape.routing().weights : nullptr;
    kernels::combine<T>(engine, order, all_rows(detail::at<T>(work, plan.row_inputs), order), by_slot, base, dx);
  }

  /// `work` is that of forward_plan where weights multiply inputs, else it may be empty.
  template <class Gradients>
  static void backward_weights(engine_type& engine, tape_type const& tape, buffer const& work, Gradients& gradients,
                               bool accumulate) {
    pending_plan<Spec, T> const kept(tape.size());
    permutation_view const& order = tape.permutation();
    bias_factors<S> factors;
    if (biased) factors = {row_weights_of(tape, work), detail::at<S>(tape.pending, kept.one)};
    apply::backward_weights(engine, rows_of(order), inputs_of(engine, tape, work),
                            dispatcher::dispatch(tape.expert_dy(), order),
                            detail::at<T>(tape.pending, kept.pre_activation),
                            detail::at<T>(tape.pending, kept.activation), gradients.experts(), accumulate, factors);
  }

 private:
  static constexpr std::int64_t parts_of_weight = weight_parts<typename read::experts_type, S, backend>(read::ffn);

  static expert_rows rows_of(permutation_view const& order) {
    return {read::mlp_experts, order.offsets(), read::expert_hidden, read::ffn, read::rows(order.tokens)};
  }

  /// The rows of experts: as many as there would be if every token were dispatched, since only the back end knows more.
  static matrix_view<T> all_rows(T* rows, permutation_view const& order) {
    return {rows, read::rows(order.tokens), read::expert_hidden};
  }

  /// What experts read.
  static kernels::rows_of<T> inputs_of(engine_type& engine, tape_type const& tape, buffer const& work) {
    permutation_view const& order = tape.permutation();
    if constexpr (place == weight_place::input) {
      T* const rows = detail::at<T>(work, forward_plan<Spec, T>(tape.size()).row_inputs);
      kernels::gather_weighted<T>(engine, order, tape.routing().weights, tape.expert_x(), all_rows(rows, order));
      return {rows, read::expert_hidden};
    } else {
      return dispatcher::dispatch(tape.expert_x(), order);
    }
  }

  /// Where the weights of rows stand: with biases the weight half needs them too. Null where inputs have them already.
  static S* row_weights_of(tape_type const& tape, buffer const& work) {
    if (place == weight_place::input) return nullptr;
    if (biased) return detail::at<S>(tape.pending, pending_plan<Spec, T>(tape.size()).row_weights);
    return detail::at<S>(work, backward_plan<Spec, T, backend>(tape.size()).row_weights);
  }
};

}  // namespace moiety
