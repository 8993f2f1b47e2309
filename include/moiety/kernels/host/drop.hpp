// SPDX-License-Identifier: Apache-2.0
// The host body of drop_beyond: the tokens of each expert are parted in place, kept ones before dropped ones, and only then
// are slots changed, since what is kept depends on the weights of other slots.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/host/route.hpp>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {

/// The slot of a token that has an expert.
template <class S>
MOIETY_HD std::int64_t slot_of(routing_view<S> const& routes, std::int64_t token, std::int64_t expert) {
  std::int64_t slot = 0;
  while (routes.expert(token, slot) != expert) ++slot;
  return slot;
}

/// What decides whether a token keeps an expert: the larger stays.
template <class Drop, class S>
MOIETY_HD double drop_key(routing_view<S> const& routes, token_table const& tokens, std::int64_t token,
                          std::int64_t expert) {
  S const* const weights = routes.weights + token * routes.slots;
  S largest = weights[0];
  for (std::int64_t j = 1; j < routes.slots; ++j) largest = largest < weights[j] ? weights[j] : largest;
  return Drop::key(weights[slot_of(routes, token, expert)], largest, tokens[token], expert);
}

/// Of the tokens of one expert in one unit, those beyond `kept` become −1 − token.
template <class Drop, class S>
void part_tokens(routing_view<S> const& routes, token_table const& tokens, std::int64_t expert, std::int64_t kept,
                 std::int32_t* first, std::int32_t* last) {
  if (last - first <= kept) return;
  std::nth_element(first, first + kept, last, [&](std::int32_t a, std::int32_t b) {
    double const of_a = drop_key<Drop>(routes, tokens, a, expert), of_b = drop_key<Drop>(routes, tokens, b, expert);
    return of_a != of_b ? of_a > of_b : a < b;
  });
  for (std::int32_t* t = first + kept; t != last; ++t) *t = dropped_from(*t);
}

}  // namespace detail

template <class Capacity, class Router, class S>
void drop_beyond(host_engine& engine, Router const& router, batch const& about, permutation_view const& order,
                 routing_view<S> const& routes, void* = nullptr) {
  token_table const tokens = about.tokens(routes.slots);
  auto const capacity = [&](std::int64_t count) { return Capacity::of(count, routes.slots, routes.experts); };
  engine.parallel(routes.experts, [&](std::int64_t e, int) {
    using drop = typename Capacity::drop_type;
    std::int32_t* first = order.source_tokens + order.starts[e];
    std::int32_t* const end = order.source_tokens + order.starts[e + 1];
    if constexpr (Capacity::by_sequence) {
      for (std::size_t u = 1; u < about.sequences.size(); ++u) {
        std::int32_t* const last = std::lower_bound(first, end, about.sequences[u]);
        std::int64_t const tokens_of_unit = about.sequences[u] - about.sequences[u - 1];
        detail::part_tokens<drop>(routes, tokens, e, capacity(tokens_of_unit), first, last);
        first = last;
      }
      if (!about.sequences.empty()) return;
    }
    detail::part_tokens<drop>(routes, tokens, e, capacity(routes.tokens), first, end);
  });
  for (std::int64_t e = 0; e < routes.experts; ++e)
    for (std::int64_t row = order.starts[e]; row < order.starts[e + 1]; ++row) {
      if (order.source_tokens[row] >= 0) continue;
      std::int64_t const token = asked_for(order.source_tokens[row]);
      std::int64_t const slot = token * routes.slots + detail::slot_of(routes, token, e);
      routes.ids[slot] = dropped_from(static_cast<std::int32_t>(e));
      routes.weights[slot] = 0;
    }
  if constexpr (Capacity::renormalises)
    engine.for_blocks(routes.tokens, detail::tokens_per_task, [&](std::int64_t t, std::int64_t last, int) {
      for (; t < last; ++t)
        if (routes.dispatched(t)) router.renormalise_kept(span_row<S>(routes.weights + t * routes.slots, routes.slots));
    });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
