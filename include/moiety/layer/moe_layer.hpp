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
// On a device the faults of a token come out of the next ctx.synchronize() instead, and values were written.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/experts/apply.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/kernels/router_gemm.hpp>
#include <moiety/kernels/row_weights.hpp>
#include <moiety/layer/arguments.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/initialise.hpp>
#include <moiety/layer/loss_gradients.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/report.hpp>
#include <moiety/layer/routing_stage.hpp>
#include <moiety/layer/selection_bias_step.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <concepts>
#include <cstdint>
#include <span>
#include <utility>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment = deployment<>> class moe_layer {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using products = typename detail::policy_of<typename Deployment::expert_products, backend, grouped_products>::type;
  using apply = typename products::template apply<typename read::experts_type, backend>;
  using router_type = typename read::router_type;
  using routing = routing_stage<Spec, Deployment>;
  static constexpr int experts = static_cast<int>(read::experts);
  static constexpr bool biased = pending_plan<Spec, T>::biased;
  static constexpr std::int64_t parts_of_weight = weight_parts<typename read::experts_type, S, backend>(read::ffn);
  using range = typename backend::engine::range;
  using dispatcher = typename Deployment::dispatcher;

 public:
  using spec = Spec;
  using deployment = Deployment;
  using weights_type =
      layer_weights<Spec, T, typename detail::weight_layout_of<typename Deployment::weight_layout, backend>::type>;
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
    weights_type weights(weights_type::bound(std::forward<Bind>(bind)), ctx_->memory());
    std::as_const(weights).for_each([this](parameter const& p, auto values) {
      ctx_->engine().check_memory("bind_weights", p.name.c_str(), values.data());
    });
    return weights;
  }

  void initialise(weights_type& weights, seed key) const {
    initialise_weights(ctx_->engine(), weights, key);
    pack(weights);
  }

  /// To be called after every change of weights in a packed layout, see experts/weight_layout.hpp.
  void pack(weights_type& weights) const { weights.pack(ctx_->engine()); }

  /// The step of the router's selection bias after a global batch: of mo::selection_bias with report.counts(), of
  /// mo::quantile_bias with the tapes of the batch.
  void update_selection_bias(weights_type& weights,
                             std::span<std::int64_t const> counts) const requires router_type::has_selection_bias {
    detail::step_bias_by_counts(ctx_->memory(), options_.router, weights.selection_bias(), read::experts, counts);
  }
  template <std::same_as<tape_type>... Tapes>
  void update_selection_bias(weights_type& weights, tape_type const& tape,
                             Tapes const&... tapes) const requires router_type::has_selection_bias {
    detail::step_bias_by_tapes(ctx_->memory(), options_.router, weights.selection_bias(), tape, tapes...);
  }

  /// Gradients of nothing yet, in the sum type.
  gradients_type make_gradients() const {
    return gradients_type(gradients_type::allocate(ctx_->memory()), ctx_->memory());
  }

  tape_type forward(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y,
                    batch const& about = {}) const {
    range const named("moiety forward");
    detail::check_call(ctx_->engine(), "forward", read::hidden, "x", x, "y", y);
    weights.expect_packed("forward");
    check_batch(about, x.rows());
    tape_type tape(tokens(x.rows(), about.units()), about, options_, true, ctx_->memory());
    tape.x = x;
    tape.came_from(weights.router().data());
    run(weights, tape, y, about, true);
    return tape;
  }

  void infer(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y, batch const& about = {}) const {
    range const named("moiety infer");
    detail::check_call(ctx_->engine(), "infer", read::hidden, "x", x, "y", y);
    weights.expect_packed("infer");
    check_batch(about, x.rows());
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
    range const named("moiety backward_input");
    tape.expect(tape_state::forward_done, weights.router().data(), "backward_input");
    weights.expect_packed("backward_input");
    detail::check_shape(ctx_->engine(), "backward", "dy", dy, tape.x.rows(), read::hidden);
    detail::check_call(ctx_->engine(), "backward", read::hidden, "dy", dy, "dx", dx);
    detail::check_call(ctx_->engine(), "backward", read::hidden, "x", tape.x, "dx", dx);
    pending_plan<Spec, T> const kept(tape.size());
    backward_plan<Spec, T, backend> const plan(tape.size());
    buffer const work(shared_workspace<Spec, T, backend>(tape.size()),
                      ctx_->memory());  // first: it is the block of forward
    tape.pending = buffer(kept.block.bytes(), ctx_->memory());
    tape.dy = dy;
    auto* const row_weights =
        biased ? detail::at<S>(tape.pending, kept.row_weights) : detail::at<S>(work, plan.row_weights);
    auto* const parts = detail::at<S>(work, plan.weight_parts);
    auto* const dweights = detail::at<S>(work, plan.weights);
    auto* const dx_rows = detail::at<T>(work, plan.row_inputs);
    auto* const dx_router = detail::at<S>(work, plan.router_inputs);

    auto& engine = ctx_->engine();
    permutation_view const& order = tape.permutation();
    kernels::spread_weights<S>(engine, order, tape.routing().weights, row_weights);
    S const one = 1;
    if (pending_plan<Spec, T>::needs_one)
      ctx_->memory().store(detail::at<S>(tape.pending, kept.one), &one, sizeof(one));
    apply::backward_input(engine, rows_of(order), dispatcher::dispatch(dy, order), weights.operands(),
                          tape.pre_activation(), row_weights, detail::at<T>(tape.pending, kept.pre_activation),
                          detail::at<T>(tape.pending, kept.activation), parts, dx_rows);
    kernels::gather_weight_gradients<S>(engine, order, parts, parts_of_weight, dweights);
    matrix_view<S> const dlogits{detail::at<S>(tape.pending, kept.logits), dx.rows(), read::experts};
    kernels::route_backward<router_type, S, experts>(engine, routing::router_of(tape.options(), weights), tape.logits(),
                                                     tape.routing(), dweights, losses_of(tape), dlogits, false);
    kernels::router_input_gradient<S>(engine, dlogits, weights.router(), dx_router);
    if constexpr (router_type::has_jitter) {
      matrix_view<S> const seen{dx_router, dx.rows(), dx.cols()};
      kernels::jitter_rows<S>(engine, tape.options().router.jitter(), tape.place(), seen, seen);
    }
    kernels::combine<T>(engine, order, all_rows(dx_rows, order), nullptr, dx_router, dx);
    tape.advance(tape_state::input_half_done);
  }

  void backward_weights(tape_type& tape, gradients_type& gradients) const {
    range const named("moiety backward_weights");
    tape.expect(tape_state::input_half_done, tape.weights(), "backward_weights");
    refuse_accumulation(tape, gradients);
    bool const accumulate = !gradients.empty();
    pending_plan<Spec, T> const kept(tape.size());
    permutation_view const& order = tape.permutation();
    apply::backward_weights(ctx_->engine(), rows_of(order), dispatcher::dispatch(tape.x, order),
                            dispatcher::dispatch(tape.dy, order), detail::at<T>(tape.pending, kept.pre_activation),
                            detail::at<T>(tape.pending, kept.activation), gradients.experts(), accumulate,
                            factors_of(tape.pending, kept));
    matrix_view<S> const dlogits{detail::at<S>(tape.pending, kept.logits), tape.x.rows(), read::experts};
    buffer const work(router_type::has_jitter ? tape.x.rows() * read::hidden * static_cast<std::int64_t>(sizeof(T)) : 0,
                      ctx_->memory());
    matrix_view<T const> const seen = routing::seen_by_router(ctx_->engine(), tape.options().router, tape, work.data());
    kernels::router_weight_gradient<T>(ctx_->engine(), dlogits, seen, tape.routed_tokens(), tape.routed_offsets(),
                                       gradients.router(), accumulate);
    if constexpr (router_type::has_linear_bias)
      kernels::router_bias_gradient<S>(ctx_->engine(), dlogits, detail::at<S>(tape.pending, kept.one),
                                       tape.routed_tokens(), tape.routed_offsets(), gradients.router_bias(),
                                       accumulate);
    gradients.filled();
    tape.advance(tape_state::finished);
  }

  /// The losses and loads of one forward. A collective.
  loss_report<Spec> report(tape_type const& tape) const { return loss_report<Spec>({layer_record<Spec>(tape)}); }

 private:
  void check_batch(batch const& about, std::int64_t count) const {
    about.check(count);
    ctx_->engine().check_memory("a layer", "a mask", about.mask.data());
    ctx_->engine().check_memory("a layer", "token ids", about.ids.data());
    ctx_->engine().check_memory("a layer", "expert ids", about.experts.data());
    options_.router.check(about, count, read::experts);
  }

  static expert_rows rows_of(permutation_view const& order) {
    return {read::experts, order.offsets(), read::hidden, read::ffn, read::rows(order.tokens)};
  }

  static bias_factors<S> factors_of(buffer const& pending, pending_plan<Spec, T> const& kept) {
    if (!biased) return {};
    return {detail::at<S>(pending, kept.row_weights), detail::at<S>(pending, kept.one)};
  }

  /// The rows of experts: as many as there would be if every token were dispatched, since only the back end knows more.
  static matrix_view<T const> all_rows(T const* rows, permutation_view const& order) {
    return {rows, read::rows(order.tokens), read::hidden};
  }

  void run(weights_type const& weights, tape_type& tape, matrix_view<T> y, batch const& about, bool keep) const {
    auto& engine = ctx_->engine();
    forward_plan<Spec, T> const plan(tape.size());
    buffer const work(keep ? shared_workspace<Spec, T, backend>(tape.size()) : plan.block.bytes(), ctx_->memory());
    permutation_view const& order = tape.permutation();
    routing::run(engine, weights, tape, about, work.data(), keep);
    T* const output = detail::at<T>(work, plan.output);
    apply::forward(engine, rows_of(order), dispatcher::dispatch(tape.x, order), weights.operands(),
                   keep ? tape.pre_activation() : nullptr, detail::at<T>(work, plan.activation), output);
    kernels::combine<T>(engine, order, all_rows(output, order), tape.routing().weights, nullptr, y);
  }

  static loss_gradients<Spec> losses_of(tape_type const& tape) {
    return {tape.options().losses, tape.units(), tape.given_weight(), tape.options().loss_scale};
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
