// SPDX-License-Identifier: Apache-2.0
// What balance losses need to know of one unit of tokens: per expert the number of slots c_e and the sum of
// probabilities Σ_t p_te, over all experts Σ_t lse_t², and the number of tokens.
//
// Where a loss asks for it, also per group of experts the number of tokens that the group is sent: those with at least one
// slot in it. Groups are equal and contiguous, as the experts of one device are. They are not counted by default (0 groups).
//
// Counts are 64-bit integers and sums are exact, so statistics of parts add up to those of the whole, to the last bit
// and in any order. A loss is a pure function of its unit's statistics; its gradient under accumulation may also take the
// counts of other micro-batches, see batch/step_counts.hpp.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/array_view.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

struct expert_statistics {
  std::int64_t count = 0;    // slots that asked for the expert
  std::int64_t dropped = 0;  // those of them that its capacity had no room for
  std::int64_t reached = 0;  // of the first expert of a group: tokens that are sent to the group
  exact_sum probability{};
  friend bool operator==(expert_statistics const&, expert_statistics const&) = default;
};

struct unit_statistics {
  std::int64_t tokens = 0;
  std::int64_t slots = 0;   // k
  std::int64_t groups = 0;  // of experts whose tokens are counted
  exact_sum lse_squared{};
  friend bool operator==(unit_statistics const&, unit_statistics const&) = default;
};

/// Counts of tokens that are not in a unit: how many tokens, and how many slots they gave each expert.
struct counts_view {
  std::int64_t const* values = nullptr;  // [1 + E]; null: no token

  MOIETY_HD std::int64_t tokens() const { return values == nullptr ? 0 : values[0]; }
  MOIETY_HD std::int64_t operator[](std::size_t expert) const { return values == nullptr ? 0 : values[1 + expert]; }
};

/// Refers to the statistics of one unit.
struct statistics_view {
  unit_statistics* unit = nullptr;
  array_view<expert_statistics> experts{};
  counts_view earlier{};    // of this step's earlier micro-batches
  counts_view last_step{};  // of the last whole step

  MOIETY_HD std::int64_t tokens() const { return unit->tokens; }
  MOIETY_HD std::int64_t slots() const { return unit->slots; }

  void add(statistics_view const& other) const {
    unit->tokens += other.unit->tokens;
    unit->slots = other.unit->slots;
    unit->groups = other.unit->groups;
    unit->lse_squared += other.unit->lse_squared;
    for (std::size_t e = 0; e < experts.size(); ++e) {
      experts[e].count += other.experts[e].count;
      experts[e].dropped += other.experts[e].dropped;
      experts[e].reached += other.experts[e].reached;
      experts[e].probability += other.experts[e].probability;
    }
  }
};

/// Refers to the statistics of a batch, unit by unit. Unit 0 is the batch; units 1, 2, … are its sequences, where a loss is
/// over them: unit u has the tokens sequences[u − 1] … sequences[u] − 1.
struct batch_statistics {
  std::int64_t count = 0;                     // of units
  std::int64_t experts = 0;                   // E
  unit_statistics* units = nullptr;           // [count]
  expert_statistics* expert_units = nullptr;  // [count × E]
  std::int64_t const* sequences = nullptr;    // [count], 0 … T
  token_counts* states = nullptr;             // tokens by state
  std::int64_t groups = 0;                    // of experts whose tokens are to be counted
  std::int64_t const* step_counts = nullptr;  // [2 × (1 + E)], as in mo::step_counts

  MOIETY_HD statistics_view unit(std::int64_t index) const {
    auto const* const last = step_counts == nullptr ? nullptr : step_counts + 1 + experts;
    return {units + index, {expert_units + index * experts, static_cast<std::size_t>(experts)}, {step_counts}, {last}};
  }

  /// The unit of a token's sequence.
  MOIETY_HD std::int64_t sequence_of(std::int64_t token) const {
    std::int64_t low = 1, high = count - 1;
    while (low < high) {
      std::int64_t const middle = (low + high) / 2;
      if (sequences[middle] <= token)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  /// Tokens that are not padding.
  MOIETY_HD std::int64_t unmasked() const { return states->routed + states->sanitised + states->unroutable; }

  /// The weight of a unit: its share, by tokens, of the batch's weight, which is that of its unmasked tokens if negative.
  MOIETY_HD double weight(std::int64_t index, double of_batch) const {
    double const whole = of_batch < 0 ? static_cast<double>(unmasked()) : of_batch;
    std::int64_t const all = units[0].tokens;
    if (index == 0 || all == 0) return whole;
    return whole * static_cast<double>(units[index].tokens) / static_cast<double>(all);
  }
};

/// Statistics of a batch in host memory of their own.
class statistics_table {
 public:
  /// Nothing counted yet; sequences as in mo::batch, groups of experts whose tokens are to be counted.
  statistics_table(std::int64_t experts, std::span<std::int64_t const> sequences = {}, std::int64_t groups = 0)
      : experts_(experts),
        groups_(groups),
        sequences_(sequences.begin(), sequences.end()),
        units_(std::max<std::size_t>(1, sequences.size())),
        expert_units_(units_.size() * static_cast<std::size_t>(experts)) {}

  /// What a back end holds, when its work so far is done.
  statistics_table(batch_statistics const& from, arena& memory)
      : experts_(from.experts),
        groups_(from.groups),
        sequences_(from.count > 1 ? static_cast<std::size_t>(from.count) : 0),
        units_(static_cast<std::size_t>(from.count)),
        expert_units_(units_.size() * static_cast<std::size_t>(experts_)) {
    auto const load = [&]<class T>(std::vector<T>& to, T const* source) {
      memory.load(to.data(), source, static_cast<std::int64_t>(to.size() * sizeof(T)));
    };
    load(sequences_, from.sequences);
    load(units_, static_cast<unit_statistics const*>(from.units));
    load(expert_units_, static_cast<expert_statistics const*>(from.expert_units));
    memory.load(&states_, from.states, sizeof(states_));
  }

  batch_statistics view() {
    return {static_cast<std::int64_t>(units_.size()),
            experts_,
            units_.data(),
            expert_units_.data(),
            sequences_.data(),
            &states_,
            groups_};
  }

 private:
  std::int64_t experts_, groups_;
  std::vector<std::int64_t> sequences_;
  std::vector<unit_statistics> units_;
  std::vector<expert_statistics> expert_units_;
  token_counts states_{};
};

/// Statistics with memory of their own.
class routing_statistics {
 public:
  routing_statistics() = default;
  routing_statistics(std::int64_t experts, std::int64_t slots, std::int64_t groups = 0)
      : experts_(static_cast<std::size_t>(experts)) {
    unit_.slots = slots;
    unit_.groups = groups;
  }
  explicit routing_statistics(statistics_view const& view)
      : unit_(*view.unit), experts_(view.experts.begin(), view.experts.end()) {}

  std::int64_t tokens() const { return unit_.tokens; }
  std::int64_t slots() const { return unit_.slots; }
  std::int64_t experts() const { return static_cast<std::int64_t>(experts_.size()); }
  std::int64_t groups() const { return unit_.groups; }

  /// Slots that asked for each expert, and those of them that were dropped.
  std::vector<std::int64_t> counts() const { return of_each(&expert_statistics::count); }
  std::vector<std::int64_t> dropped() const { return of_each(&expert_statistics::dropped); }

  /// Σ_t p_te of each expert.
  std::vector<double> probabilities() const {
    std::vector<double> values;
    for (expert_statistics const& e : experts_) values.push_back(e.probability.value());
    return values;
  }

  /// Tokens that are sent to each group.
  std::vector<std::int64_t> reached() const {
    std::vector<std::int64_t> values;
    for (std::int64_t g = 0; g < groups(); ++g)
      values.push_back(experts_[static_cast<std::size_t>(g * (experts() / groups()))].reached);
    return values;
  }

  double lse_squared() const { return unit_.lse_squared.value(); }

  routing_statistics& operator+=(routing_statistics const& other) {
    if (experts_.empty()) return *this = other;
    detail::require<data_error>(other.experts() == experts() && other.slots() == slots(), "statistics of ",
                                other.slots(), " of ", other.experts(), " experts cannot be added to those of ",
                                slots(), " of ", experts(), '.');
    detail::require<data_error>(other.groups() == groups(), "statistics of ", other.groups(),
                                " groups of experts cannot be added to those of ", groups(), '.');
    view().add(const_cast<routing_statistics&>(other).view());
    return *this;
  }

  statistics_view view() { return {&unit_, {experts_.data(), experts_.size()}}; }
  operator statistics_view() const { return const_cast<routing_statistics*>(this)->view(); }

  friend bool operator==(routing_statistics const&, routing_statistics const&) = default;

 private:
  std::vector<std::int64_t> of_each(std::int64_t expert_statistics::*member) const {
    std::vector<std::int64_t> values;
    for (expert_statistics const& e : experts_) values.push_back(e.*member);
    return values;
  }

  unit_statistics unit_;
  std::vector<expert_statistics> experts_;
};

}  // namespace moiety
