// SPDX-License-Identifier: Apache-2.0
// Statistics of batches, unit by unit: what balance losses need to know. See batch/unit_statistics.hpp for those of one unit.
//
//   batch_statistics     refers to those of a batch, wherever they are
//   statistics_table     a batch's, in host memory of their own
//   routing_statistics   one unit's, or the sum of several
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/unit_statistics.hpp>
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
  exact_sum* expected_loads = nullptr;        // [count × E], or null

  MOIETY_HD statistics_view unit(std::int64_t index) const {
    auto const* const last = step_counts == nullptr ? nullptr : step_counts + 1 + experts;
    auto const size = static_cast<std::size_t>(experts), loads = expected_loads == nullptr ? 0 : size;
    return {units + index,
            {expert_units + index * experts, size},
            {step_counts},
            {last},
            {loads == 0 ? nullptr : expected_loads + index * experts, loads}};
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

  /// The weight of a unit: its share, by tokens, of the batch's weight, which is that of its unmasked tokens if negative. A
  /// sequence without tokens weighs nothing, also where no other has any.
  MOIETY_HD double weight(std::int64_t index, double of_batch) const {
    double const whole = of_batch < 0 ? static_cast<double>(unmasked()) : of_batch;
    std::int64_t const all = units[0].tokens;
    if (index == 0) return whole;
    return all == 0 ? 0 : whole * static_cast<double>(units[index].tokens) / static_cast<double>(all);
  }
};

/// Statistics of a batch in host memory of their own.
class statistics_table {
 public:
  /// Nothing counted yet; sequences as in mo::batch, groups of experts whose tokens are to be counted, loads to be expected.
  statistics_table(std::int64_t experts, std::span<std::int64_t const> sequences = {}, std::int64_t groups = 0,
                   bool expects_loads = false)
      : experts_(experts),
        groups_(groups),
        sequences_(sequences.begin(), sequences.end()),
        units_(std::max<std::size_t>(1, sequences.size())),
        expert_units_(units_.size() * static_cast<std::size_t>(experts)),
        expected_loads_(expects_loads ? expert_units_.size() : 0) {}

  /// What a back end holds, when its work so far is done.
  statistics_table(batch_statistics const& from, arena& memory)
      : experts_(from.experts),
        groups_(from.groups),
        sequences_(from.count > 1 ? static_cast<std::size_t>(from.count) : 0),
        units_(static_cast<std::size_t>(from.count)),
        expert_units_(units_.size() * static_cast<std::size_t>(experts_)),
        expected_loads_(from.expected_loads != nullptr ? expert_units_.size() : 0) {
    auto const load = [&]<class T>(std::vector<T>& to, T const* source) {
      if (!to.empty()) memory.load(to.data(), source, static_cast<std::int64_t>(to.size() * sizeof(T)));
    };
    load(sequences_, from.sequences);
    load(units_, static_cast<unit_statistics const*>(from.units));
    load(expert_units_, static_cast<expert_statistics const*>(from.expert_units));
    load(expected_loads_, static_cast<exact_sum const*>(from.expected_loads));
    memory.load(&states_, from.states, sizeof(states_));
  }

  /// What a back end holds becomes what is here; sequences stay as they are.
  void store(batch_statistics const& to, arena& memory) const {
    auto const put = [&]<class T>(T* target, std::vector<T> const& from) {
      if (!from.empty()) memory.store(target, from.data(), static_cast<std::int64_t>(from.size() * sizeof(T)));
    };
    put(to.units, units_);
    put(to.expert_units, expert_units_);
    put(to.expected_loads, expected_loads_);
    memory.store(to.states, &states_, sizeof(states_));
  }

  batch_statistics view() {
    return {static_cast<std::int64_t>(units_.size()),
            experts_,
            units_.data(),
            expert_units_.data(),
            sequences_.data(),
            &states_,
            groups_,
            nullptr,
            expected_loads_.empty() ? nullptr : expected_loads_.data()};
  }

 private:
  std::int64_t experts_, groups_;
  std::vector<std::int64_t> sequences_;
  std::vector<unit_statistics> units_;
  std::vector<expert_statistics> expert_units_;
  std::vector<exact_sum> expected_loads_;
  token_counts states_{};
};

/// Statistics with memory of their own.
class routing_statistics {
 public:
  routing_statistics() = default;
  routing_statistics(std::int64_t experts, std::int64_t slots, std::int64_t groups = 0, bool expects_loads = false)
      : experts_(static_cast<std::size_t>(experts)), expected_loads_(expects_loads ? experts_.size() : 0) {
    unit_.slots = slots;
    unit_.groups = groups;
  }
  explicit routing_statistics(statistics_view const& view)
      : unit_(*view.unit),
        experts_(view.experts.begin(), view.experts.end()),
        expected_loads_(view.expected_loads.begin(), view.expected_loads.end()) {}

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

  /// Σ_t P_te of each expert; empty where they were not summed.
  std::vector<double> expected_loads() const {
    std::vector<double> values;
    for (exact_sum const& load : expected_loads_) values.push_back(load.value());
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
    detail::require<data_error>(other.expected_loads_.size() == expected_loads_.size(),
                                "statistics with expected loads cannot be added to those without, nor they to them.");
    view().add(const_cast<routing_statistics&>(other).view());
    return *this;
  }

  statistics_view view() {
    return {&unit_, {experts_.data(), experts_.size()}, {}, {}, {expected_loads_.data(), expected_loads_.size()}};
  }
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
  std::vector<exact_sum> expected_loads_;
};

}  // namespace moiety
