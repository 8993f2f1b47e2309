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
#include <moiety/kernels/route_row.hpp>

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

/// Whether no slot is without an expert.
template <int Slots> bool all_found(std::int32_t const* ids) {
  std::int32_t bits = 0;  // the sign is that of any: cheaper than a comparison each
  for (int j = 0; j < Slots; ++j) bits |= ids[j];
  return bits >= 0;
}

/// The state of a token; `row` becomes what is to be routed, in `sanitised` where it is not the row itself.
template <class S> token_state state_of(span_row<S>& row, span_row<S> const& sanitised, bool masked) {
  token_state const state = masked ? token_state::masked : sanitise(row, sanitised);
  if (state != token_state::routed) row = sanitised;
  return state;
}

/// Tokens that a call cannot route, of each kind the first; `name` says which layer they are of.
class routing_faults {
 public:
  explicit routing_faults(std::string_view name) : name_(name) {}

  void note_state(std::int64_t token, token_state state, non_finite policy) {
    if (policy == non_finite::reject && (state == token_state::sanitised || state == token_state::unroutable))
      lower(rejected_, token);
  }
  void note_short(std::int64_t token) { lower(short_of_experts_, token); }

  /// Throws data_error if there is one.
  void check(int slots, std::int64_t experts) const {
    char const* const colon = name_.empty() ? "" : ": ";
    moiety::detail::require<data_error>(rejected_ == none, name_, colon, "the router logits of token ",
                                        rejected_.load(), " are not all finite.");
    moiety::detail::require<data_error>(short_of_experts_ == none, name_, colon, "the router gave token ",
                                        short_of_experts_.load(), " fewer than ", slots, " distinct experts in 0 … ",
                                        experts - 1, '.');
  }

 private:
  static constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::string_view name_;
  std::atomic<std::int64_t> rejected_{none}, short_of_experts_{none};
};

/// Σ of the probabilities of at most tokens_per_task tokens, for each expert: what exact_sum gives, in vectors. A term is
/// an integer of units 2⁻³² and one of units 2⁻⁶⁴, both read from the low bits of a double.
class probability_sums {
 public:
  probability_sums(scratch_memory& scratch, std::int64_t experts)
      : high_(scratch.take<std::int64_t>(experts)), low_(scratch.take<std::int64_t>(experts)) {}

  /// Adds a row; to `exact` itself, if a value is not in [0, 1].
  template <class S> void add(span_row<S> row, std::span<expert_statistics> exact) {
    bool const fits = row.sum([](S v) { return v * (1 - v) >= 0 ? S{0} : S{1}; }) == 0;
    std::size_t const size = exact.size();
    std::size_t e = 0;
    for (; fits && e + 8 <= size; e += 8) add_block<8>(row.data() + e, e);
    for (; fits && e < size; ++e) add_block<1>(row.data() + e, e);
    for (; e < size; ++e) exact[e].probability.add(row.data()[e]);
  }

  void finish(std::span<expert_statistics> exact) const {
    for (std::size_t e = 0; e < exact.size(); ++e) {
      exact[e].probability.add(static_cast<double>(high_[e]) * 0x1p-32);
      exact[e].probability.add(static_cast<double>(low_[e]) * 0x1p-64);
    }
  }

 private:
  template <std::size_t Extent, class S> void add_block(S const* values, std::size_t first) {
    constexpr double shift = 0x1.8p52;  // a double near it has its integer in the low bits
    constexpr auto zero = moiety::detail::bit_cast<std::int64_t>(shift);
    std::int64_t high[Extent], low[Extent];
    for (std::size_t i = 0; i < Extent; ++i) {
      double const scaled = static_cast<double>(values[i]) * 0x1p32, whole = scaled + shift;
      double const rest = (scaled - (whole - shift)) * 0x1p32 + shift;  // rounds to nearest even, as exact_sum does
      high[i] = high_[first + i] + moiety::detail::bit_cast<std::int64_t>(whole) - zero;
      low[i] = low_[first + i] + moiety::detail::bit_cast<std::int64_t>(rest) - zero;
    }
    for (std::size_t i = 0; i < Extent; ++i) high_[first + i] = high[i];
    for (std::size_t i = 0; i < Extent; ++i) low_[first + i] = low[i];
  }

  std::span<std::int64_t> high_, low_;
};

/// Calls f(first, last, unit) for the tokens [begin, end), cut where a sequence with a unit of its own ends.
template <class F> void for_units(batch_statistics const& of, std::int64_t begin, std::int64_t end, F const& f) {
  if (of.count == 1) return f(begin, end, 0);
  for (std::int64_t u = of.sequence_of(begin); begin < end; ++u) {
    std::int64_t const last = std::min(end, of.sequences[u]);
    if (begin < last) f(begin, last, u);
    begin = std::max(begin, last);
  }
}

/// Counts a token for each group of `size` experts that it is sent to, at the group's first expert.
inline void count_groups(std::int32_t const* ids, std::int64_t slots, std::int32_t size,
                         std::span<expert_statistics> experts) {
  for (std::int64_t j = 0; j < slots; ++j)
    if (first_of_group(ids, j, size)) ++experts[static_cast<std::size_t>(asked_for(ids[j]) / size * size)].reached;
}

}  // namespace detail

/// `name` says which layer an error is about. Experts: their number where it is a constant, of no matter here.
template <class Router, class S, int Experts = 0>
void route(host_engine& engine, Router const& router, matrix_view<S const> logits, batch const& about,
           non_finite policy, routing_view<S> out, std::string_view name = {}) {
  std::int64_t const experts = logits.cols();
  detail::routing_faults faults(name);
  token_table const tokens = about.tokens(out.slots);
  engine.for_blocks(logits.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> const sanitised = scratch.row<S>(experts), scores = scratch.row<S>(experts);
    span_row<S> const candidates = Router::changes_scores ? scratch.row<S>(experts) : scores;
    for (std::int64_t t = begin; t < end; ++t) {
      span_row<S> row(const_cast<S*>(logits.row(t)), experts);  // only read
      token_state const state = out.states[t] = detail::state_of(row, sanitised, about.masked(t));
      faults.note_state(t, state, policy);
      std::int32_t* const ids = out.ids + t * out.slots;
      span_row<S> const weights(out.weights + t * out.slots, Router::slots);
      if (out.dispatched(t)) {
        router.forward_row(row, scores, candidates, weights, ids, tokens[t]);
        if (Router::needs_every_slot && !detail::all_found<Router::slots>(ids)) faults.note_short(t);
        if (state == token_state::sanitised) detail::drop_non_finite(weights);
      } else {
        for (std::int64_t j = 0; j < out.slots; ++j) ids[j] = static_cast<std::int32_t>(j), weights[j] = 0;
      }
    }
  });
  faults.check(Router::slots, experts);
}

/// `into` starts at zero.
template <class Router, class S, int Experts = 0>
void accumulate(host_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                batch_statistics const& into) {
  std::int64_t const experts = logits.cols();
  auto const group_size = static_cast<std::int32_t>(into.groups > 0 ? experts / into.groups : 0);
  std::mutex merging;
  auto const add_drops = [&](std::int64_t t, statistics_view const& to) {
    for (std::int64_t j = 0; j < routing.slots; ++j)
      if (std::int32_t const id = routing.expert(t, j); is_dropped(id))
        ++to.experts[static_cast<std::size_t>(asked_for(id))].dropped;
  };
  auto const add_tokens = [&](std::int64_t begin, std::int64_t end, statistics_view const& unit, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> const probabilities = scratch.row<S>(experts);
    unit_statistics part{};
    statistics_view const local{&part, scratch.take<expert_statistics>(experts)};
    detail::probability_sums sums(scratch, experts);
    for (std::int64_t t = begin; t < end; ++t) {
      if (routing.dispatched(t)) add_drops(t, local);
      if (routing.states[t] != token_state::routed) continue;
      span_row<S> const row(const_cast<S*>(logits.row(t)), experts);  // only read
      probabilities.map(row, [](S, S v) { return v; });
      router.probability_row(probabilities);
      sums.add(probabilities, local.experts);
      for (std::int64_t j = 0; j < routing.slots; ++j)
        if (std::int32_t const e = asked_for(routing.expert(t, j)); e >= 0)
          ++local.experts[static_cast<std::size_t>(e)].count;
      if (group_size > 0)
        detail::count_groups(routing.ids + t * routing.slots, routing.slots, group_size, local.experts);
      double const lse = detail::log_sum_exp(row);
      part.lse_squared.add(lse * lse);
      ++part.tokens;
    }
    sums.finish(local.experts);
    for (expert_statistics const& e : local.experts) part.chosen += e.count;
    part.slots = routing.slots, part.groups = into.groups;
    std::scoped_lock const lock(merging);
    unit.add(local);
  };
  engine.for_blocks(logits.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    detail::for_units(into, begin, end, [&](std::int64_t first, std::int64_t last, std::int64_t unit) {
      add_tokens(first, last, into.unit(unit), worker);
    });
  });
  for (std::int64_t u = 1; u < into.count; ++u) into.unit(0).add(into.unit(u));
  for (std::int64_t u = 0; u < into.count; ++u) into.units[u].slots = routing.slots, into.units[u].groups = into.groups;
  *into.states += routing.count_states();
}

inline void list_routed(host_engine&, token_state const* states, std::int64_t tokens, std::int32_t* routed,
                        std::int64_t* offsets) {
  offsets[0] = offsets[1] = 0;
  for (std::int64_t t = 0; t < tokens; ++t)
    if (states[t] == token_state::routed) routed[offsets[1]++] = static_cast<std::int32_t>(t);
}

/// add_losses(token, logits, dprobabilities, dlogits) adds what losses give to a token's rows, which start at 0.
/// dweights may be null: no gradient of the weights.
template <class Router, class S, int Experts = 0, class AddLosses>
void route_backward(host_engine& engine, Router const& router, matrix_view<S const> logits, routing_view<S> routing,
                    S const* dweights, AddLosses const& add_losses, matrix_view<S> dlogits, bool accumulate) {
  std::int64_t const experts = logits.cols(), slots = routing.slots;
  engine.for_blocks(logits.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> row = scratch.row<S>(experts), scores = scratch.row<S>(experts), normalised = scratch.row<S>(experts),
                dprobabilities = scratch.row<S>(experts), gradient = scratch.row<S>(experts),
                dweight = scratch.row<S>(slots), inputs = scratch.row<S>(slots), weights = scratch.row<S>(slots);
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
