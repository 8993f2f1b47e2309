// SPDX-License-Identifier: Apache-2.0
// The first half of a forward: x and the router's weights → logits, ids and weights, what the capacity drops, the
// permutation, and, of a tape that is kept, statistics. All of it lands in the tape.
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/drop.hpp>
#include <moiety/kernels/jitter.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/kernels/route_together.hpp>
#include <moiety/kernels/router_gemm.hpp>
#include <moiety/layer/deployment.hpp>
#include <moiety/layer/options.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/layer/tape.hpp>

#include <type_traits>

namespace moiety::inline MOIETY_ABI {

template <class Spec, class Deployment> class routing_stage {
  using read = spec_of<Spec>;
  using T = detail::element_t<Deployment>;
  using S = sum_t<T>;
  using backend = typename context<Deployment>::backend;
  using engine_type = typename backend::engine;
  using router_type = typename read::router_type;
  using capacity = typename read::capacity_type;
  using index_builder = typename detail::policy_of<typename Deployment::index_builder, backend, counting_sort>::type;
  static constexpr int experts = static_cast<int>(read::experts);
  static_assert(!capacity::drops || std::is_same_v<backend, host>,
                "mo::capacity runs on mo::host, not yet on mo::cuda.");

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

  /// `work` is that of forward_plan.
  template <class Weights>
  static void run(engine_type& engine, Weights const& weights, layer_tape<Spec, T>& tape, batch const& about,
                  void* work, bool keep) {
    layer_options<Spec> const& options = tape.options();
    router_type const router = router_of(options, weights);
    matrix_view<T const> const seen = keep ? seen_by_router(engine, router, tape, work) : tape.x;
    kernels::router_logits<T>(engine, seen, weights.router(), tape.logits(), weights.router_bias());
    auto const policy = options.non_finite.value_or(backend::default_non_finite);
    if constexpr (router_type::couples_tokens)
      kernels::route_together<router_type, S>(engine, router, tape.logits(), about, policy, tape.routing(), work,
                                              options.name);
    else
      kernels::route<router_type, S, experts>(engine, router, tape.logits(), about, policy, tape.routing(),
                                              options.name);
    permutation_view const& order = tape.permutation();
    index_builder::template build<S>(engine, tape.routing(), order);
    if constexpr (capacity::drops) {
      kernels::drop_beyond<capacity>(engine, router, about, order, tape.routing());
      index_builder::template build<S>(engine, tape.routing(), order);
    }
    if (!keep) return;
    kernels::accumulate<router_type, S, experts>(engine, router, tape.logits(), tape.routing(), tape.units());
    kernels::list_routed(engine, tape.routing().states, order.tokens, tape.routed_tokens(), tape.routed_offsets());
  }
};

}  // namespace moiety
