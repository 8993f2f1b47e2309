// SPDX-License-Identifier: Apache-2.0
// The host body of route_together.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/host/route.hpp>
#include <moiety/kernels/host/scratch.hpp>
#include <moiety/kernels/route_row.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {
/// Bytes of the scores [T × E], which the selection's own workspace follows.
template <class S> constexpr std::int64_t score_bytes(std::int64_t tokens, std::int64_t experts) {
  constexpr auto alignment = static_cast<std::int64_t>(memory_alignment);
  return (tokens * experts * static_cast<std::int64_t>(sizeof(S)) + alignment - 1) / alignment * alignment;
}
}  // namespace detail

template <class Router, class S> constexpr std::int64_t route_workspace(std::int64_t tokens, std::int64_t experts) {
  return detail::score_bytes<S>(tokens, experts) + Router::selection_type::template workspace_bytes<S>(tokens, experts);
}

/// Experts: their number where it is a constant, of no matter here.
template <class Router, class S, int Experts = 0>
void route_together(host_engine& engine, Router const& router, matrix_view<S const> logits, batch const& about,
                    non_finite policy, routing_view<S> out, void* workspace, std::string_view name = {}) {
  std::int64_t const tokens = logits.rows(), experts = logits.cols();
  if (tokens == 0) return;
  auto* const memory = static_cast<std::byte*>(workspace);
  matrix_view<S> const scores(reinterpret_cast<S*>(memory), tokens, experts);
  detail::routing_faults faults(name);
  auto const each_token = [&](auto const& f) {
    engine.for_blocks(tokens, detail::tokens_per_task, [&](std::int64_t t, std::int64_t end, int worker) {
      scratch_memory scratch(engine.scratch(worker));
      span_row<S> const sanitised = scratch.row<S>(experts), spare = scratch.row<S>(experts);
      for (; t < end; ++t) {
        span_row<S> row(const_cast<S*>(logits.row(t)), experts);  // only read
        f(t, detail::state_of(row, sanitised, about.masked(t)), row, spare);
      }
    });
  };
  each_token([&](std::int64_t t, token_state state, span_row<S> row, span_row<S>) {
    faults.note_state(t, out.states[t] = state, policy);
    std::fill_n(out.ids + t * out.slots, out.slots, no_expert);
    span_row<S> const seen(scores.row(t), experts);
    seen.map(row, [](S, S z) { return z; });
    if (out.dispatched(t)) router.candidate_row(seen);
  });
  faults.check(Router::slots, experts);
  router.selection().select(
      engine, typename Router::template scores_of<S>{scores, out.states, about.tokens(out.slots), out.slots, out.ids,
                                                     memory + detail::score_bytes<S>(tokens, experts)});
  each_token([&](std::int64_t t, token_state state, span_row<S> row, span_row<S> spare) {
    span_row<S> const weights(out.weights + t * out.slots, out.slots);
    weights.map([](S) { return S{0}; });
    if (out.dispatched(t)) router.weight_row(row, spare, weights, out.ids + t * out.slots);
    if (state == token_state::sanitised) detail::drop_non_finite(weights);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
