// SPDX-License-Identifier: Apache-2.0
// The host bodies of the routing kernels.
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/host/scratch.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <span>
#include <string_view>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

namespace detail {

inline constexpr std::int64_t tokens_per_task = 64;

/// Makes `least` at most `value`.
inline void lower(std::atomic<std::int64_t>& least, std::int64_t value) {
  std::int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) continue;
}

/// What is left of a row once NaN counts as −∞ and +∞ as the largest finite number.
template <class S> token_state sanitise(span_row<S> row) {
  constexpr S infinity = std::numeric_limits<S>::infinity(), largest = std::numeric_limits<S>::max();
  bool const all_finite = row.sum([](S v) { return v - v; }) == S{0};  // one NaN or infinity makes the sum NaN
  if (all_finite) return token_state::routed;
  bool any_above = false;
  for (int e = 0; e < row.size(); ++e) {
    row[e] = row[e] == infinity ? largest : (row[e] >= -largest ? row[e] : -infinity);
    any_above = any_above || row[e] > -infinity;
  }
  return any_above ? token_state::sanitised : token_state::unroutable;
}

template <class S> S log_sum_exp(span_row<S> row) {
  S const peak = row.max();
  return peak + moiety::log(row.sum([&](S v) { return moiety::exp(v - peak); }));
}

}  // namespace detail

/// `name` says which layer an error is about.
template <class Router, class S>
void route(host_engine& engine, Router const& router, matrix_view<S const> logits, batch const& about,
           non_finite policy, routing_view<S> out, std::string_view name = {}) {
  std::int64_t const experts = logits.cols(), none = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> rejected{none};
  engine.for_blocks(logits.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> const row = scratch.row<S>(experts), scores = scratch.row<S>(experts);
    for (std::int64_t t = begin; t < end; ++t) {
      span_row<S> weights(out.weights + t * out.slots, out.slots);
      std::int32_t* const ids = out.ids + t * out.slots;
      std::copy_n(logits.row(t), experts, row.data());
      token_state state = about.masked(t) ? token_state::masked : detail::sanitise(row);
      if (policy == non_finite::reject && (state == token_state::sanitised || state == token_state::unroutable))
        detail::lower(rejected, t);
      out.states[t] = state;
      if (out.dispatched(t)) {
        router.forward_row(row, scores, weights, ids);
      } else {
        for (std::int64_t j = 0; j < out.slots; ++j) ids[j] = static_cast<std::int32_t>(j), weights[j] = 0;
      }
    }
  });
  moiety::detail::require<data_error>(rejected == none, name, name.empty() ? "" : ": ", "the router logits of token ",
                                      rejected.load(), " are not all finite.");
}

/// units[u] covers the tokens of sequence u; it is added to, not cleared.
template <class Router, class S>
void accumulate(host_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                std::span<std::int64_t const> sequences, std::span<statistics_view const> units) {
  std::int64_t const experts = logits.cols();
  std::mutex merging;
  auto const add_tokens = [&](std::int64_t begin, std::int64_t end, statistics_view const& unit, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> const row = scratch.row<S>(experts);
    unit_statistics part{};
    statistics_view const local{&part, scratch.take<expert_statistics>(experts)};
    for (std::int64_t t = begin; t < end; ++t) {
      if (routing.states[t] != token_state::routed) continue;
      std::copy_n(logits.row(t), experts, row.data());
      router.probability_row(row);
      for (std::int64_t e = 0; e < experts; ++e) local.experts[static_cast<std::size_t>(e)].probability.add(row[e]);
      for (std::int64_t j = 0; j < routing.slots; ++j)
        ++local.experts[static_cast<std::size_t>(routing.expert(t, j))].count;
      std::copy_n(logits.row(t), experts, row.data());
      double const lse = detail::log_sum_exp(row);
      part.lse_squared.add(lse * lse);
      ++part.tokens;
    }
    part.slots = routing.slots;
    std::scoped_lock const lock(merging);
    unit.add(local);
  };
  engine.for_blocks(logits.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    if (sequences.empty()) return add_tokens(begin, end, units[0], worker);
    auto const next = std::upper_bound(sequences.begin(), sequences.end(), begin);
    for (auto u = static_cast<std::size_t>(next - sequences.begin()) - 1; begin < end; ++u) {
      std::int64_t const last = std::min(end, sequences[u + 1]);
      if (begin < last) add_tokens(begin, last, units[u], worker);
      begin = std::max(begin, last);
    }
  });
}

/// add_losses(token, logits, dprobabilities, dlogits) adds what losses give to a token's rows, which start at 0.
/// dweights may be null: no gradient of the weights.
template <class Router, class S, class AddLosses>
void route_backward(host_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                    S const* dweights, AddLosses const& add_losses, matrix_view<S> dlogits, bool accumulate) {
  std::int64_t const experts = logits.cols(), slots = routing.slots;
  engine.for_blocks(logits.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> const row = scratch.row<S>(experts), scores = scratch.row<S>(experts),
                      normalised = scratch.row<S>(experts), dprobabilities = scratch.row<S>(experts),
                      gradient = scratch.row<S>(experts), dweight = scratch.row<S>(slots),
                      inputs = scratch.row<S>(slots), weights = scratch.row<S>(slots);
    for (std::int64_t t = begin; t < end; ++t) {
      auto const zero = [](S) { return S{0}; };
      gradient.map(zero);
      if (routing.states[t] == token_state::routed) {
        std::copy_n(logits.row(t), experts, row.data());
        dprobabilities.map(zero);
        if (dweights != nullptr)
          std::copy_n(dweights + t * slots, slots, dweight.data());
        else
          dweight.map(zero);
        add_losses(t, row, dprobabilities, gradient);
        router.backward_row(row, routing.ids + t * slots, dweight, dprobabilities, gradient, scores, normalised, inputs,
                            weights);
      }
      span_row<S> const out(dlogits.row(t), experts);
      out.map(gradient, [&](S old, S g) { return accumulate ? old + g : g; });
    }
  });
}

}  // namespace kernels
}  // namespace moiety
