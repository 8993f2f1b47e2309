// SPDX-License-Identifier: Apache-2.0
// A Mixture-of-Experts layer: a spec and a deployment composed into one concrete type.
//
//   y_t = shared(x_t) + Σ_{j<k} w_tj · expert_{id(t, j)}(x_t)        ids and w from router(x W_routerᵀ)
//
//   auto tape = layer.forward(weights, x, y, batch);                     x, y [T × H]; y is overwritten
//   layer.backward(weights, tape, dy, dx, gradients);                    or its halves:
//   layer.backward_input(weights, tape, dy, dx);                         dx [T × H], overwritten
//   layer.backward_weights(tape, gradients);                             gradients are added to, or overwritten if empty
//   layer.infer(weights, x, y, batch);                                   the same bits of y, nothing kept
//
// Gradients are those of the sum Σ ⟨dy, y⟩ + loss_scale · Σ_losses coefficient · weight · value (see losses/loss.hpp), nothing
// averaged. Layers and calls share nothing but the context. Faults throw before y, dx or gradients are written: data_error
// (shapes, memory, aliasing, non-finite logits, a router that gives too few experts), state_error (tapes), config_error
// (options). On a device the faults of a token come out of the next ctx.synchronize() instead, and values were written.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/layer/arguments.hpp>
#include <moiety/layer/configuration_of.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/expert_stage.hpp>
#include <moiety/layer/initialise.hpp>
#include <moiety/layer/latent_stage.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/parameters.hpp>
#include <moiety/layer/product_room.hpp>
#include <moiety/layer/rank_sums.hpp>
#include <moiety/layer/report.hpp>
#include <moiety/layer/routing_stage.hpp>
#include <moiety/layer/selection_bias_step.hpp>
#include <moiety/layer/shared_stage.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>
#include <moiety/mesh/agreement.hpp>

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment = deployment<>> class moe_layer {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using dispatcher = typename Deployment::dispatcher;
  using routing = routing_stage<Spec, Deployment>;
  using experts = expert_stage<Spec, Deployment>;
  using shared = shared_stage<Spec, Deployment>;
  using latent = latent_stage<Spec, Deployment>;
  using router_type = typename read::router_type;
  using range = typename backend::engine::range;
  static_assert(detail::check_ranks<Deployment>() && detail::check_padding<Spec, Deployment>() && sizeof(routing) > 0 &&
                    sizeof(experts) > 0 && detail::check_numerics<Deployment>(),
                "stages check the policies that they use, once a layer is named");

 public:
  using spec = Spec;
  using deployment = Deployment;
  using element = T;
  using weights_type = layer_weights<Spec, T, detail::weight_layout_t<Deployment>>;
  using gradients_type = layer_gradients<Spec, T>;
  using tape_type = layer_tape<Spec, T>;

  explicit moe_layer(context<Deployment>& ctx, layer_options<Spec> const& options = {})
      : ctx_(&ctx), options_(options), links_(ctx.expert_group()) {
    if constexpr (detail::has_ranks<Deployment>)
      configuration_of<Spec, Deployment>(options).check(ctx.stage(), "a layer");
    options_.check();
    share_ = detail::share_of<Spec, Deployment>(ctx.shape(), ctx.expert().rank(), ctx.expert_tensor().rank());
  }

  static constexpr std::int64_t input_width() { return read::hidden; }
  static constexpr std::int64_t output_width() { return read::hidden; }
  layout const& shape() const { return ctx_->shape(); }
  weights_type make_weights(seed key, std::string_view prefix = {}) const {
    weights_type weights(weights_type::allocate(ctx_->memory(), share_), ctx_->memory());
    initialise(weights, key, prefix);
    return weights;
  }

  /// Weights in memory of the caller: bind(parameter) gives a pointer to parameter.size() values.
  template <class Bind> weights_type bind_weights(Bind&& bind) const {
    weights_type weights(weights_type::bound(std::forward<Bind>(bind), share_), ctx_->memory());
    std::as_const(weights).for_each([this](parameter const& p, auto values) {
      ctx_->engine().check_memory("bind_weights", p.name.c_str(), values.data());
    });
    return weights;
  }

  void initialise(weights_type& weights, seed key, std::string_view prefix = {}) const {
    initialise_weights(ctx_->engine(), weights, key, prefix);
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
    detail::step_bias_by_tapes(*ctx_, options_.router, weights.selection_bias(), tape, tapes...);
  }

  gradients_type make_gradients() const { return {gradients_type::allocate(ctx_->memory(), share_), ctx_->memory()}; }

  tape_type forward(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y,
                    batch const& about = {}) const {
    range const named("moiety forward");
    return run("forward", weights, x, y, about, true);
  }

  void infer(weights_type const& weights, matrix_view<T const> x, matrix_view<T> y, batch const& about = {}) const {
    range const named("moiety infer");
    run("infer", weights, x, y, about, false);
  }

  void backward(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx,
                gradients_type& gradients) const {
    tape.options().check_accumulation(gradients.has_backward());
    weight_half(tape, gradients, input_half(weights, tape, dy, dx, &gradients));
  }
  void backward_input(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx) const {
    input_half(weights, tape, dy, dx, nullptr);
  }
  void backward_weights(tape_type& tape, gradients_type& gradients) const { weight_half(tape, gradients, false); }

  /// What one forward found, for a ledger: of this rank.
  layer_record<Spec> record(tape_type const& tape) const { return layer_record<Spec>(tape); }

  /// The losses and loads of one forward. A collective.
  loss_report<Spec> report(tape_type const& tape) const {
    std::vector<layer_record<Spec>> records{record(tape)};
    if constexpr (detail::has_ranks<Deployment>) sum_records<Spec>(*ctx_, records);
    return loss_report<Spec>(std::move(records));
  }

 private:
  /// Returns whether `gradients`, which may be null, have got those of W_down here.
  bool input_half(weights_type const& weights, tape_type& tape, matrix_view<T const> dy, matrix_view<T> dx,
                  gradients_type* gradients) const {
    range const named("moiety backward_input");
    call_together(*ctx_, dispatcher::travels, {"backward_input", tape.place().step}, [&] {
      tape.expect(tape_state::forward_done, weights.router().data(), "backward_input");
      weights.expect_packed("backward_input");
      detail::check_shape(ctx_->engine(), "backward", "dy", dy, tape.x.rows(), read::hidden);
      detail::check_call(ctx_->engine(), "backward", read::hidden, "dy", dy, "dx", dx);
      detail::check_call(ctx_->engine(), "backward", read::hidden, "x", tape.x, "dx", dx);
    });
    buffer const work = workspace(tape);  // first: it is the block of forward
    tape.begin_backward(dy);
    S* const dx_router = detail::at<S>(work, backward_plan<Spec, T, backend>(tape.size()).router_inputs);
    if constexpr (read::has_latent) latent::leave_backward(ctx_->engine(), weights, tape);
    bool const has_down = experts::backward_input(*ctx_, links_, weights, tape, work, gradients);
    routing::backward_input(ctx_->engine(), weights, tape, work, dx_router);
    if constexpr (read::has_shared) shared::backward_input(ctx_->engine(), weights, tape, work, dx_router);
    if constexpr (read::has_latent) {
      experts::combine_input(ctx_->engine(), tape, work, nullptr, latent::dx_of(tape));
      latent::enter_backward(ctx_->engine(), weights, tape, dx_router, dx);
    } else {
      experts::combine_input(ctx_->engine(), tape, work, dx_router, dx);
    }
    tape.advance(tape_state::input_half_done);
    return has_down;
  }

  void weight_half(tape_type& tape, gradients_type& gradients, bool has_down) const {
    range const named("moiety backward_weights");
    tape.expect(tape_state::input_half_done, tape.weights(), "backward_weights");
    tape.options().check_accumulation(gradients.has_backward());
    bool const accumulate = !gradients.empty();
    constexpr bool needs_work = routing::needs_work || experts::needs_work;
    buffer const work = needs_work ? workspace(tape) : buffer();
    experts::backward_weights(*ctx_, links_, tape, work, gradients, accumulate, has_down);
    routing::backward_weights(ctx_->engine(), tape, work, gradients, accumulate);
    if constexpr (read::has_latent) latent::backward_weights(ctx_->engine(), tape, gradients, accumulate);
    if constexpr (read::has_shared) shared::backward_weights(ctx_->engine(), tape, gradients, accumulate);
    gradients.filled();
    tape.advance(tape_state::finished);
  }

  /// The workspace of forward and of both halves of backward, which one after another have the same block.
  buffer workspace(tape_type const& tape) const {
    return buffer(layer_workspace<Spec, Deployment>(tape.size()), ctx_->memory());
  }

  tape_type run(char const* call, weights_type const& weights, matrix_view<T const> x, matrix_view<T> y,
                batch const& about, bool keep) const {
    std::optional<tape_type> made;
    buffer work;
    auto const take_workspace = [&] {
      work = buffer();
      work = keep ? workspace(*made) : buffer(infer_workspace<Spec, Deployment>(made->size()), ctx_->memory());
    };
    auto const choose = [&] {
      detail::check_call(ctx_->engine(), call, read::hidden, "x", x, "y", y);
      weights.expect_packed(call);
      experts::check_room(x.rows(), about);
      detail::check_batch(ctx_->engine(), options_.router, about, x.rows(), read::experts);
      tokens size(x.rows(), about.units());
      if (detail::counts_rows<Spec, Deployment>) size.arrived = 0, size.ffn = share_.ffn.count;
      made.emplace(size, about, options_, keep, ctx_->memory()).x = x;
      made->came_from(weights.router().data());
      take_workspace();
      routing::choose(ctx_->engine(), weights, *made, about, work, keep);
    };
    call_together(*ctx_, keep || dispatcher::travels || read::capacity_type::drops, {call, about.step}, choose);
    tape_type& tape = *made;
    routing::place(*ctx_, weights, tape, about, work, keep);
    if constexpr (detail::counts_rows<Spec, Deployment>) {
      experts::arrive(*ctx_, links_, tape, keep);
      take_workspace();
    }
    S const* base = nullptr;
    if constexpr (read::has_shared) base = shared::forward(ctx_->engine(), weights, tape, work, keep);
    if constexpr (read::has_latent) {
      latent::enter(ctx_->engine(), weights, tape);
      experts::forward(*ctx_, links_, weights, tape, work, keep, nullptr, tape.latent_outputs());
      latent::leave(ctx_->engine(), weights, tape, base, y);
    } else {
      experts::forward(*ctx_, links_, weights, tape, work, keep, base, y);
    }
    return std::move(*made);
  }

  context<Deployment>* ctx_;
  layer_options<Spec> options_;
  expert_share share_;
  mutable typename experts::links links_;
};

}  // namespace moiety
