// SPDX-License-Identifier: Apache-2.0
// A Mixture-of-Experts layer: a spec and a deployment composed into one concrete type.
//
//   y_t = Σ_{j<k} w_tj · expert_{id(t, j)}(x_t)        ids and w from router(x W_routerᵀ)
//
//   auto tape = layer.forward(weights, x, y, batch);                     x, y [T × H]; y is overwritten
//   layer.backward(weights, tape, dy, dx, gradients);                    or its halves:
//   layer.backward_input(weights, tape, dy, dx);                         dx [T × H], overwritten
//   layer.backward_weights(tape, gradients);                             gradients are added to, or overwritten if empty
//   layer.infer(weights, x, y, batch);                                   the same bits of y, nothing kept
//
// Gradients are those of the sum Σ ⟨dy, y⟩ + loss_scale · Σ_losses coefficient · weight · value (see losses/loss.hpp):
// sums over tokens, nothing averaged. A layer is a function of explicit state; layers and calls share nothing but the
// context. Faults throw before y, dx or gradients are written: data_error (shapes, null or misaligned
// memory, aliasing, non-finite logits, a router that gives too few experts), state_error (tapes), config_error (options).
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/layer/arguments.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/initialise.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/report.hpp>
#include <moiety/layer/row_weights.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment = deployment<>> class moe_layer {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using apply = apply_experts<typename read::experts_type>;
  using dispatcher = typename Deployment::dispatcher;

 public:
  using spec = Spec;
  using deployment = Deployment;
  using weights_type = layer_weights<Spec, T, typename Deployment::weight_layout>;
  using gradients_type = layer_gradients<Spec, T>;
  using tape_type = layer_tape<Spec, T>;

  explicit moe_layer(context<Deployment>& ctx, layer_options<Spec> const& options = {})
      : ctx_(&ctx), options_(options) {
    options_.check();
  }

  weights_type make_weights(seed key) const {
    weights_type weights(weights_type::allocate(ctx_->memory()), ctx_->memory());
    initialise(weights, key);
    return weights;
  }

  /// Weights in memory of the caller: bind(parameter) gives a pointer to parameter.size() values.
  template <class Bind> weights_type bind_weights(Bind&& bind) const {
    return weights_type(weights_type::bound(std::forward<Bind>(bind)), ctx_->memory());
  }

  void initialise(weights_type& weights, seed key) const {
    initialise_weights(ctx_->engine(), weights, key);
    pack(weights);
  }

  /// To be called after every change of weights in a packed layout, see experts/weight_layout.hpp.
  void pack(weights_type& weights) const { weights.pack(ctx_->engine()); }

  /// Zero gradients, in the sum type.
  gradients_type make_gradients() const { return gradients_type(gradients_type::allocate(ctx_->memory())); }

  tape_type forward(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y,
                    batch const& about = {}) const {
    detail::check_call("forward", read::hidden, "x", x, "y", y);
    weights.expect_packed("forward");
    about.check(x.rows());
    tape_type tape(tokens(x.rows(), about.units()), about, options_, true, ctx_->memory());
    tape.x = x;
    tape.came_from(weights.router().data());
    run(weights, tape, y, about, true);
    return tape;
  }

  void infer(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y, batch const& about = {}) const {
    detail::check_call("infer", read::hidden, "x", x, "y", y);
    weights.expect_packed("infer");
    about.check(x.rows());
    tape_type scratch(tokens(x.rows(), about.units()), about, options_, false, ctx_->memory());
    scratch.x = x;
    run(weights, scratch, y, about, false);
  }

  void backward(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx,
                gradients_type& gradients) const {
    refuse_accumulation(tape, gradients);
    backward_input(weights, tape, dy, dx);
    backward_weights(tape, gradients);
  }

  void backward_input(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx) const {
    tape.expect(tape_state::forward_done, weights.router().data(), "backward_input");
    weights.expect_packed("backward_input");
    detail::check_shape("backward", "dy", dy, tape.x.rows(), read::hidden);
    detail::check_call("backward", read::hidden, "dy", dy, "dx", dx);
    detail::check_call("backward", read::hidden, "x", tape.x, "dx", dx);
    pending_plan<Spec, T> const kept(tape.size());
    backward_plan<Spec, T> const plan(tape.size());
    buffer const work(shared_workspace<Spec, T>(tape.size()), ctx_->memory());  // first: it is the block of forward
    tape.pending = buffer(kept.block.bytes(), ctx_->memory());
    tape.dy = dy;
    auto* const row_weights = detail::at<S>(work, plan.row_weights);
    auto* const parts = detail::at<S>(work, plan.weight_parts);
    auto* const dweights = detail::at<S>(work, plan.weights);
    auto* const dx_rows = detail::at<T>(work, plan.row_inputs);
    auto* const dx_router = detail::at<S>(work, plan.router_inputs);

    permutation_view const& order = tape.permutation();
    spread_weights<S>(order, tape.routing().weights, row_weights);
    apply::backward_input(ctx_->engine(), rows_of(order), dispatcher::dispatch(dy, order), weights.operands(),
                          tape.pre_activation(), row_weights, detail::at<T>(tape.pending, kept.pre_activation),
                          detail::at<T>(tape.pending, kept.activation), parts, dx_rows);
    gather_weight_gradients<S>(order, parts, column_blocks<S>(read::ffn), dweights);
    matrix_view<S> const dlogits{detail::at<S>(tape.pending, kept.logits), dx.rows(), read::experts};
    router_backward(tape, dweights, dlogits);
    router_input_gradient(weights, dlogits, dx_router);
    kernels::combine(ctx_->engine(), order, matrix_view<T const>{dx_rows, order.rows(), read::hidden},
                     static_cast<S const*>(nullptr), static_cast<S const*>(dx_router), dx);
    tape.advance(tape_state::input_half_done);
  }

  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    tape.expect(tape_state::input_half_done, tape.weights(), "backward_weights");
    refuse_accumulation(tape, gradients);
    bool const accumulate = !gradients.empty();
    pending_plan<Spec, T> const kept(tape.size());
    permutation_view const& order = tape.permutation();
    apply::backward_weights(ctx_->engine(), rows_of(order), dispatcher::dispatch(tape.x, order),
                            dispatcher::dispatch(tape.dy, order), detail::at<T>(tape.pending, kept.pre_activation),
                            detail::at<T>(tape.pending, kept.activation), gradients.experts(), accumulate);
    // Only tokens that reached the losses or a weight: others have no gradient, and may hold values that are not finite.
    std::array<std::int64_t, 2> const all{0, tape.routed_count};
    kernels::grouped_gemm_tn<S>(
        ctx_->engine(), 1, all.data(),
        kernels::rows_of<S>{detail::at<S>(tape.pending, kept.logits), read::experts, tape.routed_tokens()},
        kernels::rows_of<T>{tape.x.data(), tape.x.stride(), tape.routed_tokens()},
        kernels::grouped_matrix<S>{gradients.router().data(), 0, read::hidden}, read::experts, read::hidden,
        accumulate);
    gradients.filled();
    tape.advance(tape_state::finished);
  }

  /// The losses and loads of one forward. A collective.
  loss_report<Spec> report(tape_type const& tape) const { return loss_report<Spec>({layer_record<Spec>(tape)}); }

 private:
  static expert_rows rows_of(permutation_view const& order) {
    return {read::experts, order.offsets(), read::hidden, read::ffn};
  }

  void run(weights_type const& weights, tape_type& tape, matrix_view<T> y, batch const& about, bool keep) const {
    std::array<std::int64_t, 2> const all{0, tape.x.rows()};
    kernels::grouped_gemm_nt<S>(
        ctx_->engine(), 1, all.data(), kernels::rows_of<T>{tape.x.data(), tape.x.stride()},
        std::array{kernels::grouped_matrix<S const>{weights.router().data(), 0, read::hidden}}, read::experts,
        read::hidden,
        [&](std::int64_t, std::int64_t t, std::int64_t e, std::int64_t count, std::array<S const*, 1> const& sums) {
          std::copy_n(sums[0], count, tape.logits().row(t) + e);
        });
    auto const policy = options_.non_finite.value_or(Deployment::backend::default_non_finite);
    kernels::route<typename read::router_type, S>(ctx_->engine(), options_.router, tape.logits(), about, policy,
                                                  tape.routing(), options_.name);
    kernels::build_permutation(ctx_->engine(), tape.routing(), tape.permutation());
    if (keep) take_statistics(tape);
    forward_plan<Spec, T> const plan(tape.size());
    buffer const work(keep ? shared_workspace<Spec, T>(tape.size()) : plan.block.bytes(), ctx_->memory());
    permutation_view const& order = tape.permutation();
    T* const output = detail::at<T>(work, plan.output);
    apply::forward(ctx_->engine(), rows_of(order), dispatcher::dispatch(tape.x, order), weights.operands(),
                   keep ? tape.pre_activation() : nullptr, detail::at<T>(work, plan.activation), output);
    kernels::combine(ctx_->engine(), order, matrix_view<T const>{output, order.rows(), read::hidden},
                     static_cast<S const*>(tape.routing().weights), static_cast<S const*>(nullptr), y);
  }

  void take_statistics(tape_type& tape) const {
    std::vector<statistics_view> units;
    for (std::int64_t u = tape.units() > 1 ? 1 : 0; u < tape.units(); ++u) units.push_back(tape.unit(u));
    tape.unit(0).unit->slots = read::slots;
    kernels::accumulate<typename read::router_type, S>(ctx_->engine(), options_.router, tape.logits(), tape.routing(),
                                                       tape.sequences(), units);
    for (std::int64_t u = 1; u < tape.units(); ++u) tape.unit(0).add(tape.unit(u));
    for (std::int64_t t = 0; t < tape.x.rows(); ++t)
      if (tape.routing().states[t] == token_state::routed)
        tape.routed_tokens()[tape.routed_count++] = static_cast<std::int32_t>(t);
  }

  void router_backward(tape_type const& tape, S const* dweights, matrix_view<S> dlogits) const {
    auto const add_losses = [&](std::int64_t token, span_row<S> z, span_row<S> dp, span_row<S> dz) {
      tape.options().losses.for_each([&]<class Loss>(Loss const& loss) {
        std::int64_t const unit = tape.template unit_of<Loss>(token);
        double const factor = static_cast<double>(loss.coefficient) * static_cast<double>(tape.options().loss_scale) *
                              tape.unit_weight(unit);
        if (factor != 0) loss.token_gradient(tape.unit(unit), static_cast<S>(factor), z, dp, dz);
      });
    };
    kernels::route_backward<typename read::router_type, S>(ctx_->engine(), tape.options().router, tape.logits(),
                                                           tape.routing(), dweights, add_losses, dlogits, false);
  }

  void router_input_gradient(weights_type const& weights, matrix_view<S> dlogits, S* dx) const {
    std::array<std::int64_t, 2> const all{0, dlogits.rows()};
    kernels::grouped_gemm_nn<S>(
        ctx_->engine(), 1, all.data(), std::array{kernels::rows_of<S>{dlogits.data(), dlogits.stride()}},
        std::array{kernels::grouped_matrix<S const>{weights.router().data(), 0, read::hidden}}, read::hidden,
        read::experts, [&](std::int64_t, std::int64_t t, std::int64_t col, std::int64_t cols, S const* sums) {
          std::copy_n(sums, cols, dx + t * read::hidden + col);
        });
  }

  static void refuse_accumulation(tape_type const& tape, gradients_type const& gradients) {
    detail::require<config_error>(gradients.empty() || !tape.options().template trains_over<over::global_batch>(),
                                  "a loss over the global batch cannot be trained under gradient accumulation: its "
                                  "counts are not known when the first backward runs.");
  }

  context<Deployment>* ctx_;
  layer_options<Spec> options_;
};

}  // namespace moiety
