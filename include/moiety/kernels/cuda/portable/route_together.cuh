// SPDX-License-Identifier: Apache-2.0
// route_together on a CUDA device: a warp for each token in the first and last pass, as in route; between them the selection
// launches what it has for a device (router/*.cuh). Given the same logits, the bits of the host.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/cuda/portable/route.cuh>
#include <moiety/kernels/cuda/portable/warp_row.cuh>
#include <moiety/kernels/route_row.hpp>
#include <moiety/kernels/route_together.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// States, and what the selection is to see of the scores; slots have no expert yet.
template <class Router, class S, int N, int Experts>
__global__ void __launch_bounds__(route_threads, 1)
    see_tokens(Router const router, matrix_view<S const> const logits, std::uint8_t const* mask, bool const reject,
               routing_view<S> const out, matrix_view<S> const seen, cuda_faults* faults) {
  int const experts = row_size<Experts>(logits.cols()), slots = slots_of<Router>(experts);
  for (std::int64_t t = first_token(); t < logits.rows(); t += token_stride()) {
    registers_of<S, N> values = {};
    warp_row<S, N> const row(values, experts);
    token_state const state = read_token(logits, mask, reject, t, row, faults);
    if (state <= token_state::sanitised) router.candidate_row(row);
    S* const to = seen.row(t);
    row.each([&](int e, S s) { to[e] = s; });
    if (lane_of_thread() == 0) out.states[t] = state;
    for (int j = lane_of_thread(); j < slots; j += warp_lanes) out.ids[t * slots + j] = no_expert;
  }
}

template <class Router, class S, int N, int Experts>
__global__ void __launch_bounds__(route_threads, 1)
    weigh_tokens(Router const router, matrix_view<S const> const logits, routing_view<S> const out) {
  int const experts = row_size<Experts>(logits.cols()), slots = slots_of<Router>(experts);
  for (std::int64_t t = first_token(); t < logits.rows(); t += token_stride()) {
    registers_of<S, N> values = {}, score_values = {}, weight_values = {};
    warp_row<S, N> const row(values, experts), scores(score_values, experts), weights(weight_values, slots);
    if (out.dispatched(t)) {
      load_row(row, logits.row(t));
      token_state const state = detail::sanitise(row, row);
      token_ids<Router::slots> const ids(out.ids + t * slots);
      router.weight_row(row, scores, weights, ids);
      if (state == token_state::sanitised) detail::drop_non_finite(weights);
    }
    weights.each([&](int j, S w) { out.weights[t * slots + j] = w; });
  }
}

}  // namespace gpu

template <class Router, class S, int Experts>
void route_together(cuda_engine& engine, Router const& router, matrix_view<S const> logits, batch const& about,
                    non_finite policy, routing_view<S> out, void* workspace, std::string_view) {
  std::int64_t const tokens = logits.rows(), experts = logits.cols();
  if (tokens == 0) return;
  auto* const memory = static_cast<std::byte*>(workspace);
  matrix_view<S> const seen(reinterpret_cast<S*>(memory), tokens, experts);
  std::int64_t const blocks = gpu::route_blocks(engine, tokens);
  gpu::with_registers<Experts>(experts, [&](auto n) {
    engine.launch("route_together: see", &gpu::see_tokens<Router, S, n(), Experts>, {blocks, gpu::route_threads},
                  router, logits, about.mask.data(), policy == non_finite::reject, out, seen, engine.faults());
  });
  router.selection().select(
      engine, typename Router::template scores_of<S>{seen, out.states, about.tokens(out.slots), out.slots, out.ids,
                                                     memory + detail::score_bytes<S>(tokens, experts)});
  gpu::with_registers<Experts>(experts, [&](auto n) {
    engine.launch("route_together: weigh", &gpu::weigh_tokens<Router, S, n(), Experts>, {blocks, gpu::route_threads},
                  router, logits, out);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
