// SPDX-License-Identifier: Apache-2.0
// The first half of a forward, and its backward: x and the router's weights → logits, ids and weights, what the capacity drops, the
// permutation, and, of a tape that is kept, statistics. All of it lands in the tape.
//
//   backward_input     gradients of the weights, and losses → those of the logits → what they add to dx
//   backward_weights   gradients of the logits → those of the router's parameters
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/drop.hpp>
#include <moiety/kernels/expected_load.hpp>
#include <moiety/kernels/jitter.hpp>
#include <moiety/kernels/logit_noise.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/kernels/route_together.hpp>
#include <moiety/kernels/router_gemm.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/loss_gradients.hpp>
#include <moiety/layer/memory_plan.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/product_room.hpp>
#include <moiety/layer/rank_sums.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <array>
#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment> class routing_stage {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using context_type = context<Deployment>;
  using engine_type = typename backend::engine;
  using router_type = typename read::router_type;
  using capacity = typename read::capacity_type;
  using index_builder = typename detail::policy_of<typename Deployment::index_builder, backend, counting_sort>::type;
  using products = typename detail::policy_of<typename Deployment::router_products, backend, fma_products>::type;
  static constexpr int experts = static_cast<int>(read::experts);
  static constexpr bool expects_loads = read::losses_type::needs_expected_loads;

 public:
  /// The router of the options, with what its rows need to know beside them.
  template <class Weights> static router_type router_of(layer_options<Spec> const& options, Weights const& weights) {
    router_type router = options.router;
    if constexpr (router_type::has_selection_bias) router = router.with_bias(weights.selection_bias());
    if constexpr (capacity::drops)
      if (capacity::renormalises) router = router.with_kept_renormalised();
    return router;
  }

  /// What the router of a tape that is kept sees of x: x, or x with its jitter in `work`, which has room for it.
  static matrix_view<T const> seen_by_router(engine_type& engine, router_type const& router,
                                             layer_tape<Spec, T> const& tape, void* work) {
    if constexpr (router_type::has_jitter) {
      matrix_view<T> const noisy{static_cast<T*>(work), tape.x.rows(), tape.x.cols()};
      kernels::jitter_rows<T>(engine, router.jitter(), tape.place(), tape.x, noisy);
      return noisy;
    }
    return tape.x;
  }

  /// Each token's experts and weights. `work` is that of forward_plan.
  template <class Weights>
  static void choose(engine_type& engine, Weights const& weights, layer_tape<Spec, T>& tape, batch const& about,
                     buffer const& work, bool keep) {
    constexpr bool couples = router_type::couples_tokens;
    static_assert(!couples || selects_on<typename router_type::selection_type, backend>,
                  "this selection over the whole batch runs on mo::host: on another back end it needs runs_on<Backend> "
                  "and select(engine, scores) for its engine.");
    layer_options<Spec> const& options = tape.options();
    router_type const router = router_of(options, weights);
    matrix_view<T const> const seen = keep ? seen_by_router(engine, router, tape, work.data()) : tape.x;
    using kernels::router_logits;
    void* const room = room_in<Spec, Deployment>(work, tape.size(), layer_pass::forward);
    router_logits<T>(products::on(engine, room), seen, weights.router(), tape.logits(), weights.router_bias());
    if (keep) add_noise(engine, weights, tape, seen, room);
    auto const policy = options.non_finite.value_or(backend::default_non_finite);
    if constexpr (!couples)
      kernels::route<router_type, S, experts>(engine, router, tape.logits(), about, policy, tape.routing(),
                                              options.name);
    else if constexpr (selects_on<typename router_type::selection_type, backend>)
      kernels::route_together<router_type, S, experts>(engine, router, tape.logits(), about, policy, tape.routing(),
                                                       work.data(), options.name);
  }

  /// What follows from the choices of all ranks: drops, the permutation, statistics. A collective where there are ranks.
  template <class Weights>
  static void place(context_type& ctx, Weights const& weights, layer_tape<Spec, T>& tape, batch const& about,
                    buffer const& work, bool keep) {
    engine_type& engine = ctx.engine();
    router_type const router = router_of(tape.options(), weights);
    permutation_view const& order = tape.permutation();
    if constexpr (capacity::drops) drop(ctx, router, about, tape, work);
    index_builder::template build<S>(engine, tape.routing(), order);
    if constexpr (read::lists_passing) list_passing(engine, tape, work);
    if (!keep) return;
    kernels::accumulate<router_type, S, experts>(engine, router, tape.logits(), tape.routing(), tape.units());
    if constexpr (expects_loads)
      kernels::add_expected_loads<noise_type, S, experts>(engine, router.noise(), tape.place(), tape.routing(),
                                                          tape.noise_logits(), tape.logits(), tape.units());
    kernels::list_routed(engine, tape.routing().states, order.tokens, tape.routed_tokens(), tape.routed_offsets());
    if constexpr (detail::has_ranks<Deployment>) sum_statistics(ctx, tape);
  }

  /// Writes the gradient of the logits to the tape, and its part of dx [T × H]. `work` is that of backward_plan, with that of the
  /// weights [T × k].
  template <class Weights>
  static void backward_input(engine_type& engine, Weights const& weights, layer_tape<Spec, T> const& tape,
                             buffer const& work, S* dx) {
    router_type const router = router_of(tape.options(), weights);
    S const* const dweights = detail::at<S>(work, backward_plan<Spec, T, backend>(tape.size()).weights);
    loss_gradients<Spec> const losses{tape.options().losses, tape.units(), tape.given_weight(), tape.loss_scale()};
    kernels::route_backward<router_type, S, experts>(engine, router, tape.logits(), tape.routing(), dweights, losses,
                                                     dlogits_of(tape), false);
    noise_backward(engine, router, tape, losses);
    using kernels::router_input_gradient;
    auto&& by = products::on(engine, room_in<Spec, Deployment>(work, tape.size(), layer_pass::backward_input));
    if constexpr (router_type::has_learned_noise)
      router_input_gradient<S>(by, operands{dlogits_of(tape), dnoise_of(tape)},
                               operands{weights.router(), weights.router_noise()}, dx);
    else
      router_input_gradient<S>(by, dlogits_of(tape), weights.router(), dx);
    if constexpr (router_type::has_jitter) {
      matrix_view<S> const seen{dx, tape.x.rows(), read::hidden};
      kernels::jitter_rows<S>(engine, router.jitter(), tape.place(), seen, seen);
    }
  }

  /// Whether the weight half needs the workspace.
  static constexpr bool needs_work = router_type::has_jitter || detail::router_wants_room<Deployment>;

  /// `work` is that of forward_plan; it may be empty where it is not needed.
  template <class Gradients>
  static void backward_weights(engine_type& engine, layer_tape<Spec, T> const& tape, buffer const& work,
                               Gradients& gradients, bool accumulate) {
    using kernels::router_weight_gradient;
    matrix_view<T const> const seen = seen_by_router(engine, tape.options().router, tape, work.data());
    auto&& by = products::on(engine, room_in<Spec, Deployment>(work, tape.size(), layer_pass::backward_weights));
    router_weight_gradient<T>(by, dlogits_of(tape), seen, tape.routed_tokens(), tape.routed_offsets(),
                              gradients.router(), accumulate);
    if constexpr (router_type::has_learned_noise)
      router_weight_gradient<T>(by, dnoise_of(tape), seen, tape.routed_tokens(), tape.routed_offsets(),
                                gradients.router_noise(), accumulate);
    if constexpr (router_type::has_linear_bias)
      kernels::router_bias_gradient<S>(
          engine, dlogits_of(tape), detail::at<S>(tape.pending, pending_plan<Spec, T>(tape.size()).one),
          tape.routed_tokens(), tape.routed_offsets(), gradients.router_bias(), accumulate);
  }

 private:
  /// Slots beyond the capacity of their expert.
  static void drop(context_type& ctx, router_type const& router, batch const& about, layer_tape<Spec, T> const& tape,
                   buffer const& work) {
    if constexpr (detail::has_ranks<Deployment>)
      if ((capacity::by_sequence ? ctx.sequence_parts() : ctx.stage()).size() > 1)
        return drop_over_ranks<capacity>(ctx, router, about, tape.routing());
    index_builder::template build<S>(ctx.engine(), tape.routing(), tape.permutation());
    kernels::drop_beyond<capacity>(ctx.engine(), router, about, tape.permutation(), tape.routing(), work.data());
  }

  using noise_type = std::decay_t<decltype(router_type{}.noise())>;
  using operands = std::array<matrix_view<S const>, 2>;

  /// A row for every token that is dispatched, for what all of them pass: the permutation of a routing to expert 0.
  static void list_passing(engine_type& engine, layer_tape<Spec, T> const& tape, buffer const& work) {
    permutation_view const& order = tape.passing();
    auto* const ids = detail::at<std::int32_t>(work, forward_plan<Spec, T>(tape.size()).passing_ids);
    engine.memory().zero(ids, order.tokens * static_cast<std::int64_t>(sizeof(std::int32_t)));
    index_builder::template build<S>(engine, {order.tokens, 1, 1, ids, nullptr, tape.routing().states}, order);
  }

  /// The logits of a tape that is kept become noisy, where the router says so.
  template <class Weights>
  static void add_noise(engine_type& engine, Weights const& weights, layer_tape<Spec, T>& tape,
                        [[maybe_unused]] matrix_view<T const> seen, [[maybe_unused]] void* room) {
    using kernels::router_logits;
    if constexpr (router_type::has_learned_noise)
      router_logits<T>(products::on(engine, room), seen, weights.router_noise(), tape.noise_logits());
    if constexpr (router_type::has_logit_noise)
      kernels::add_logit_noise<noise_type, S>(engine, tape.options().router.noise(), tape.place(), tape.noise_logits(),
                                              tape.logits());
  }

  /// Adds what losses of expected loads give to the gradient of the logits; then writes that of the noise's logits.
  static void noise_backward(engine_type& engine, router_type const& router, layer_tape<Spec, T> const& tape,
                             loss_gradients<Spec> const& losses) {
    if constexpr (expects_loads) {
      loss_gradients<Spec, true> const of_chances{losses.losses, losses.units, losses.batch_weight, losses.loss_scale};
      kernels::expected_load_gradient<noise_type, S, experts>(engine, router.noise(), tape.place(), tape.routing(),
                                                              tape.noise_logits(), tape.logits(), of_chances,
                                                              dlogits_of(tape), dnoise_of(tape));
    }
    if constexpr (router_type::has_learned_noise)
      kernels::logit_noise_gradient<noise_type, S>(engine, router.noise(), tape.place(), tape.routing().states,
                                                   tape.noise_logits(), dlogits_of(tape), dnoise_of(tape),
                                                   expects_loads);
  }

  /// The gradients of the logits and of those of the noise.
  static matrix_view<S> dlogits_of(layer_tape<Spec, T> const& tape) {
    pending_plan<Spec, T> const kept(tape.size());
    return {detail::at<S>(tape.pending, kept.logits), tape.x.rows(), read::experts};
  }
  static matrix_view<S> dnoise_of(layer_tape<Spec, T> const& tape) {
    if (!router_type::has_learned_noise) return {};
    pending_plan<Spec, T> const kept(tape.size());
    return {detail::at<S>(tape.pending, kept.noise_logits), tape.x.rows(), read::experts};
  }
};

}  // namespace moiety
