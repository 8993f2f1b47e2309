// SPDX-License-Identifier: Apache-2.0
// What the ranks of a stage tell each other of a call beside rows: the statistics of loss units that they share, and whom
// capacities drop. All are collectives of ctx.stage().
//
//   call_together      a call on all ranks, or an error on all, see mesh/agreement.hpp
//   sum_statistics     units of a tape become those of all ranks: exact, so in any order; a batch's unit is that of the tokens of
//                      the stage, a sequence's that of the ranks that hold its parts. Those of a device are added on the
//                      host, which waits for them
//   drop_over_ranks    drops as one rank with the tokens of all would. Those of a device are told each other by the host, which
//                      waits for them
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/kernels/drop.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/layer/tape.hpp>
#include <moiety/mesh/agreement.hpp>
#include <moiety/mesh/context.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// Calls f(); where the call exchanges something with other ranks, on all ranks of the stage or none.
template <class Context, class F>
void call_together(Context& ctx, bool exchanges, common_call const& call, F const& f) {
  if constexpr (detail::has_ranks<typename Context::deployment>) {
    for (auto* ranks : {&ctx.stage(), &ctx.expert_group(), &ctx.sequence_parts()}) ranks->at_step(call.step);
    if (exchanges) return agree(ctx.stage(), f, call);
  }
  f();
}

namespace detail {

/// How many sequences ranks have parts of: the fewest and the most, each with a rank of the stage that has them.
struct sequence_counts {
  std::array<std::int64_t, 2> fewest{std::numeric_limits<std::int64_t>::max(), 0}, most{-1, 0};

  template <class Context> static sequence_counts of(Context& ctx, std::int64_t sequences) {
    std::array<std::int64_t, 2> const own{sequences, ctx.stage().rank()};
    return {own, own};
  }
  sequence_counts& operator+=(sequence_counts const& other) {
    fewest = std::min(fewest, other.fewest), most = std::max(most, other.most);
    return *this;
  }
  /// Throws data_error on every rank of the stage unless it is the same number.
  template <class Context> void check(Context& ctx) const {
    require_together<data_error>(ctx.stage(), fewest[0] == most[0], "mo::batch{.sequences} has parts of ", fewest[0],
                                 " sequences on rank ", fewest[1], " and of ", most[0], " on rank ", most[1],
                                 " of the stage, which share them.");
  }
};

/// The sum over each data rank's ranks, which hold parts of the same sequences; a collective of the stage.
template <class V, class Context> std::vector<V> sums_by_data_rank(Context& ctx, V const& mine) {
  std::vector<V> sums(static_cast<std::size_t>(ctx.data().size()));
  sums[static_cast<std::size_t>(ctx.data().rank())] = mine;
  ctx.stage().all_reduce(std::span(sums));
  return sums;
}

/// Statistics of consecutive units become those of all ranks of a group.
template <class Communicator>
void sum_units(Communicator& ranks, batch_statistics const& of, std::int64_t first, std::int64_t count) {
  auto const values = static_cast<std::size_t>(count * of.experts);
  ranks.all_reduce(std::span(of.units + first, static_cast<std::size_t>(count)));
  ranks.all_reduce(std::span(of.expert_units + first * of.experts, values));
  if (of.expected_loads != nullptr) ranks.all_reduce(std::span(of.expected_loads + first * of.experts, values));
}

/// The same of all units of a tape, in host memory, and of the weight of its batch.
template <class Context, class Tape> void sum_all_units(Context& ctx, Tape& tape, batch_statistics const& units) {
  struct totals {
    token_counts states;
    exact_sum weight;
    std::int64_t given = 0;
    sequence_counts sequences;

    totals& operator+=(totals const& other) {
      states += other.states, weight += other.weight, given += other.given, sequences += other.sequences;
      return *this;
    }
  };
  totals mine{*units.states, {}, tape.given_weight() >= 0 ? 1 : 0, sequence_counts::of(ctx, units.count - 1)}, all;
  mine.weight.add(units.weight(0, tape.given_weight()));
  for (totals const& sum : sums_by_data_rank(ctx, mine)) sum.sequences.check(ctx), all += sum;
  *units.states = all.states;
  if (all.given > 0) tape.give_weight(all.weight.value());
  sum_units(ctx.stage(), units, 0, 1);
  if (units.count > 1) sum_units(ctx.sequence_parts(), units, 1, units.count - 1);
}

}  // namespace detail

template <class Context, class Tape> void sum_statistics(Context& ctx, Tape& tape) {
  if (ctx.stage().size() == 1) return;
  if (ctx.memory().of_host()) return detail::sum_all_units(ctx, tape, tape.units());
  statistics_table table = tape.statistics();
  detail::sum_all_units(ctx, tape, table.view());
  table.store(tape.units(), ctx.memory());
}

namespace detail {

/// The sequences of ranks that hold parts of them, joined: of each sequence the part of rank 0 is first.
class joined_sequences {
 public:
  /// A collective of the ranks that hold parts of the same sequences; `offsets` are those of the parts here, of one number.
  template <class Communicator> joined_sequences(Communicator& ranks, std::span<std::int64_t const> offsets) {
    auto const size = static_cast<std::size_t>(ranks.size());
    std::vector<std::int64_t> all(offsets.size() * size), begins{0};
    ranks.template all_gather<std::int64_t>(offsets, all);
    auto const offset = [&](std::size_t rank, std::size_t unit) { return all[rank * offsets.size() + unit]; };
    for (std::size_t r = 0; r < size; ++r) begins.push_back(begins.back() + offset(r, offsets.size() - 1));
    place_.resize(static_cast<std::size_t>(begins.back()));
    first_ = begins[static_cast<std::size_t>(ranks.rank())];
    for (std::size_t u = 1; u < offsets.size(); ++u)
      for (std::size_t r = 0; r < size; ++r) {
        for (std::int64_t t = offset(r, u - 1); t < offset(r, u); ++t)
          place_[static_cast<std::size_t>(begins[r] + t)] = next_++;
        if (r + 1 == size) ends_.push_back(next_);
      }
  }

  /// Offsets of the whole sequences.
  std::span<std::int64_t const> offsets() const { return ends_; }
  /// Tokens of all.
  std::int64_t tokens() const { return std::ssize(place_); }
  /// The place of a token of this rank.
  std::int64_t place(std::int64_t token) const { return place_[static_cast<std::size_t>(first_ + token)]; }

  /// Rows of `width` values of all ranks, joined; a collective.
  template <class Communicator, class V>
  std::vector<V> join(Communicator& ranks, V const* rows, std::int64_t count, std::int64_t width) const {
    auto const all = ranks.template all_gather_v<V>({rows, static_cast<std::size_t>(count * width)});
    std::vector<V> joined(all.size());
    for (std::size_t t = 0; t < place_.size(); ++t)
      std::copy_n(all.data() + static_cast<std::int64_t>(t) * width, width, joined.data() + place_[t] * width);
    return joined;
  }

 private:
  std::vector<std::int64_t> place_, ends_{0};  // of the tokens of all, in the order of ranks
  std::int64_t first_ = 0, next_ = 0;
};

/// Values of the host in memory of the back end, or room for them.
template <class V> struct placed_values {
  buffer block;
  placed_values(std::int64_t count, arena& memory) : block(count * static_cast<std::int64_t>(sizeof(V)), memory) {}
  placed_values(std::span<V const> values, arena& memory) : placed_values(std::ssize(values), memory) {
    memory.store(block.data(), values.data(), block.bytes());
  }
  V* data() const { return static_cast<V*>(block.data()); }
};
template <class V> std::vector<V> values_at(V const* place, std::int64_t count, arena& memory) {
  std::vector<V> values(static_cast<std::size_t>(count));
  memory.load(values.data(), place, count * static_cast<std::int64_t>(sizeof(V)));
  return values;
}

}  // namespace detail

/// Tokens of a batch are in the order of ranks, those of a sequence in that of the ranks that hold its parts. Throws data_error on
/// every rank of the stage where these have parts of other numbers of sequences.
template <class Capacity, class Context, class Router, class S>
void drop_over_ranks(Context& ctx, Router const& router, batch const& about, routing_view<S> const& mine) {
  auto& ranks = Capacity::by_sequence ? ctx.sequence_parts() : ctx.stage();
  arena& memory = ctx.memory();
  std::int64_t const k = mine.slots, own = mine.tokens;
  std::array<std::int64_t, 2> const one{0, own};
  bool const whole = !Capacity::by_sequence || about.sequences.empty();
  if constexpr (Capacity::by_sequence)
    for (auto const& counts : detail::sums_by_data_rank(ctx, detail::sequence_counts::of(ctx, about.units())))
      counts.check(ctx);
  detail::joined_sequences const joined(ranks, whole ? std::span<std::int64_t const>(one) : about.sequences);
  auto const of_all = [&]<class V>(V* values, std::int64_t width) {
    std::vector<V> const told = detail::values_at(values, own * width, memory);
    return detail::placed_values<V>(std::span<V const>(joined.join(ranks, told.data(), own, width)), memory);
  };
  auto const ids = of_all(mine.ids, k);
  auto const weights = of_all(mine.weights, k);
  auto const states = of_all(mine.states, 1);
  routing_view<S> const all{joined.tokens(), mine.experts, k, ids.data(), weights.data(), states.data()};
  batch together{.sequences = joined.offsets(), .first_row = about.first_row, .step = about.step, .layer = about.layer};
  ranks.template broadcast<std::int64_t>({&together.first_row, 1}, 0);
  detail::placed_values<std::int64_t> const starts(all.experts + 1, memory);
  detail::placed_values<std::int32_t> const tokens(all.tokens * k, memory), positions(all.tokens * k, memory);
  permutation_view const order{all.tokens, all.experts, k, starts.data(), tokens.data(), positions.data()};
  buffer const work(kernels::drop_workspace<Capacity>(together.units()), memory);
  kernels::build_permutation<S>(ctx.engine(), all, order);
  kernels::drop_beyond<Capacity>(ctx.engine(), router, together, order, all, work.data());
  auto const keep_own = [&]<class V>(V const* values, V* to) {
    std::vector<V> const found = detail::values_at(values, all.tokens * k, memory);
    std::vector<V> kept(static_cast<std::size_t>(own * k));
    for (std::int64_t t = 0; t < own; ++t) std::copy_n(found.data() + joined.place(t) * k, k, kept.data() + t * k);
    memory.store(to, kept.data(), own * k * static_cast<std::int64_t>(sizeof(V)));
  };
  keep_own(all.ids, mine.ids);
  keep_own(all.weights, mine.weights);
}

}  // namespace moiety
