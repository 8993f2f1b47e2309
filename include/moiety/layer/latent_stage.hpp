// SPDX-License-Identifier: Apache-2.0
// The linear maps around routed experts that work on L values a token (dims.latent); the router sees x itself.
//
//   x′ = W_in x              [T × L]   what experts are given        latent.in    [L × H]
//   y = base + W_out y′      [T × H]   of what combine leaves        latent.out   [H × L]
//
// Both x′ and y′ are rounded to the element type and saved. Tokens that are dispatched alone have a part in the gradients of
// weights.
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/linear.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment> class latent_stage {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using engine_type = typename backend::engine;
  using tape_type = layer_tape<Spec, T>;

 public:
  template <class Weights> static void enter(engine_type& engine, Weights const& weights, tape_type const& tape) {
    kernels::linear<T>(engine, tape.x, weights.latent_in(), nullptr, tape.latent_inputs());
  }
  template <class Weights>
  static void leave(engine_type& engine, Weights const& weights, tape_type const& tape, S const* base,
                    matrix_view<T> y) {
    kernels::linear<T>(engine, tape.latent_outputs(), weights.latent_out(), base, y);
  }

  /// dy → the gradient of y′, and the gradient of x′ → dx.
  template <class Weights>
  static void leave_backward(engine_type& engine, Weights const& weights, tape_type const& tape) {
    kernels::linear_input_gradient<T>(engine, tape.dy, weights.latent_out(), nullptr, dy_of(tape));
  }
  template <class Weights>
  static void enter_backward(engine_type& engine, Weights const& weights, tape_type const& tape, S const* base,
                             matrix_view<T> dx) {
    kernels::linear_input_gradient<T>(engine, dx_of(tape), weights.latent_in(), base, dx);
  }

  template <class Gradients>
  static void backward_weights(engine_type& engine, tape_type const& tape, Gradients& gradients, bool accumulate) {
    permutation_view const& order = tape.passing();
    kernels::linear_weight_gradient<T>(engine, dx_of(tape), tape.x, order.source_tokens, order.starts,
                                       gradients.latent_in(), accumulate);
    kernels::linear_weight_gradient<T>(engine, tape.dy, tape.latent_outputs(), order.source_tokens, order.starts,
                                       gradients.latent_out(), accumulate);
  }

  /// The gradients of y′ and x′, which the input half leaves for the weight half.
  static matrix_view<T> dy_of(tape_type const& tape) {
    return by_token(tape, pending_plan<Spec, T>(tape.size()).latent_dy);
  }
  static matrix_view<T> dx_of(tape_type const& tape) {
    return by_token(tape, pending_plan<Spec, T>(tape.size()).latent_dx);
  }

 private:
  static matrix_view<T> by_token(tape_type const& tape, std::int64_t offset) {
    return {detail::at<T>(tape.pending, offset), tape.size().count, read::latent};
  }
};

}  // namespace moiety
