// SPDX-License-Identifier: Apache-2.0
// drop_beyond on a CUDA device, without a host read: the tokens and the bits of the host.
//
//   mark          a block finds by a radix select which rows of one expert in one unit are kept, and marks the others in
//                 the positions of their slots: keys are made of ids and weights of all slots, which nothing changes yet
//   apply         a thread a slot: the marked ones lose expert and weight
//   renormalise   a warp a token, where the capacity asks for it
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/largest.cuh>
#include <moiety/kernels/cuda/portable/route.cuh>
#include <moiety/kernels/cuda/portable/row_weights.cuh>
#include <moiety/kernels/cuda/portable/warp_row.cuh>
#include <moiety/kernels/drop.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr std::int32_t marked_row = -2;  // −1 is that of a slot without a row

/// The first of rows [first, last) whose token is `token` or a later one.
__device__ inline std::int64_t first_row_of(std::int32_t const* tokens, std::int64_t first, std::int64_t last,
                                            std::int64_t token) {
  while (first < last) {
    std::int64_t const middle = first + (last - first) / 2;
    if (tokens[middle] < token)
      first = middle + 1;
    else
      last = middle;
  }
  return first;
}

/// Block u · E + e has the rows of expert e in unit u: sequence u, or without sequences the whole call.
template <class Capacity, class S>
__global__ void __launch_bounds__(cut_threads, 1)
    mark_dropped(routing_view<S> const routes, permutation_view const order, token_table const tokens,
                 std::int64_t const* sequences) {
  using drop = typename Capacity::drop_type;
  std::int64_t const e = blockIdx.x % routes.experts, unit = blockIdx.x / routes.experts;
  std::int64_t first = order.starts[e], last = order.starts[e + 1], size = routes.tokens;
  if (sequences != nullptr) {
    size = sequences[unit + 1] - sequences[unit];
    last = first_row_of(order.source_tokens, first, last, sequences[unit + 1]);
    first = first_row_of(order.source_tokens, first, last, sequences[unit]);
  }
  std::int64_t const count = last - first, kept = Capacity::of(size, routes.slots, routes.experts);
  if (count <= kept) return;
  std::int32_t const* const own = order.source_tokens + first;
  auto const key = [&](std::int64_t i) { return ordered_bits(detail::drop_key<drop>(routes, tokens, own[i], e)); };
  largest_cut<std::uint64_t> const cut = find_cut<std::uint64_t>(count, kept, key);
  for (std::int64_t i = threadIdx.x; i < count; i += cut_threads)
    if (!cut.keeps(key(i), i)) order.positions[own[i] * routes.slots + detail::slot_of(routes, own[i], e)] = marked_row;
}

template <class S>
__global__ void __launch_bounds__(slot_threads)
    apply_drops(routing_view<S> const routes, std::int32_t const* positions) {
  std::int64_t const slot = slot_of_thread();
  if (slot >= routes.tokens * routes.slots || positions[slot] != marked_row) return;
  routes.ids[slot] = dropped_from(routes.ids[slot]);
  routes.weights[slot] = 0;
}

template <class Router, class S>
__global__ void __launch_bounds__(route_threads) renormalise_tokens(Router const router, routing_view<S> const routes) {
  constexpr int slots = Router::slots;
  for (std::int64_t t = first_token(); t < routes.tokens; t += token_stride()) {
    if (!routes.dispatched(t)) continue;
    registers_of<S, (slots + warp_lanes - 1) / warp_lanes> values = {};
    warp_row<S, (slots + warp_lanes - 1) / warp_lanes> const weights(values, slots);
    load_row(weights, routes.weights + t * slots);
    router.renormalise_kept(weights);
    weights.each([&](int j, S w) { routes.weights[t * slots + j] = w; });
  }
}

}  // namespace gpu

template <class Capacity, class Router, class S>
void drop_beyond(cuda_engine& engine, Router const& router, batch const& about, permutation_view const& order,
                 routing_view<S> const& routes, void* workspace) {
  std::int64_t const* sequences = nullptr;
  if (Capacity::by_sequence && !about.sequences.empty()) {
    engine.memory().store(workspace, about.sequences.data(), static_cast<std::int64_t>(about.sequences.size_bytes()));
    sequences = static_cast<std::int64_t const*>(workspace);
  }
  std::int64_t const units = sequences == nullptr ? 1 : about.units();
  engine.launch("drop_beyond: mark", gpu::mark_dropped<Capacity, S>, {units * routes.experts, gpu::cut_threads}, routes,
                order, about.tokens(routes.slots), sequences);
  engine.launch("drop_beyond: apply", gpu::apply_drops<S>, gpu::thread_a_slot(routes.tokens * routes.slots), routes,
                order.positions);
  if constexpr (Capacity::renormalises)
    engine.launch("drop_beyond: renormalise", gpu::renormalise_tokens<Router, S>,
                  {gpu::route_blocks(engine, routes.tokens), gpu::route_threads}, router, routes);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
