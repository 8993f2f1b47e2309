// SPDX-License-Identifier: Apache-2.0
// What balance losses need to know of one unit of tokens: per expert the number of slots c_e and the sum of
// probabilities Σ_t p_te, over all experts Σ_t lse_t², and the number of tokens.
//
// Counts are 64-bit integers and sums are exact, so statistics of parts add up to those of the whole, to the last bit
// and in any order. A loss is a pure function of its unit's statistics.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/core/array_view.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moiety::inline MOIETY_ABI {

struct expert_statistics {
  std::int64_t count = 0;
  exact_sum probability{};
  friend bool operator==(expert_statistics const&, expert_statistics const&) = default;
};

struct unit_statistics {
  std::int64_t tokens = 0;
  std::int64_t slots = 0;  // k
  exact_sum lse_squared{};
  friend bool operator==(unit_statistics const&, unit_statistics const&) = default;
};

/// Refers to the statistics of one unit.
struct statistics_view {
  unit_statistics* unit = nullptr;
  array_view<expert_statistics> experts{};

  MOIETY_HD std::int64_t tokens() const { return unit->tokens; }
  MOIETY_HD std::int64_t slots() const { return unit->slots; }

  void add(statistics_view const& other) const {
    unit->tokens += other.unit->tokens;
    unit->slots = other.unit->slots;
    unit->lse_squared += other.unit->lse_squared;
    for (std::size_t e = 0; e < experts.size(); ++e) {
      experts[e].count += other.experts[e].count;
      experts[e].probability += other.experts[e].probability;
    }
  }
};

/// Refers to the statistics of all units of a batch.
struct batch_statistics {
  std::int64_t count = 0;  // unit 0 is the batch; units 1, 2, … its sequences, if count > 1
  std::int64_t experts = 0;
  unit_statistics* units = nullptr;           // [count]
  expert_statistics* expert_units = nullptr;  // [count × experts]
  std::int64_t const* sequences = nullptr;    // [count]: their offsets 0 = s₀ ≤ s₁ ≤ … = T, if count > 1
  token_counts* states = nullptr;             // tokens by state

  MOIETY_HD statistics_view unit(std::int64_t index) const {
    return {units + index, {expert_units + index * experts, static_cast<std::size_t>(experts)}};
  }
};

/// Statistics with memory of their own.
class routing_statistics {
 public:
  routing_statistics() = default;
  routing_statistics(std::int64_t experts, std::int64_t slots) : experts_(static_cast<std::size_t>(experts)) {
    unit_.slots = slots;
  }
  explicit routing_statistics(statistics_view const& view)
      : unit_(*view.unit), experts_(view.experts.begin(), view.experts.end()) {}

  std::int64_t tokens() const { return unit_.tokens; }
  std::int64_t slots() const { return unit_.slots; }
  std::int64_t experts() const { return static_cast<std::int64_t>(experts_.size()); }

  /// Slots routed to each expert.
  std::vector<std::int64_t> counts() const {
    std::vector<std::int64_t> values;
    for (expert_statistics const& e : experts_) values.push_back(e.count);
    return values;
  }

  /// Σ_t p_te of each expert.
  std::vector<double> probabilities() const {
    std::vector<double> values;
    for (expert_statistics const& e : experts_) values.push_back(e.probability.value());
    return values;
  }

  double lse_squared() const { return unit_.lse_squared.value(); }

  routing_statistics& operator+=(routing_statistics const& other) {
    if (experts_.empty()) return *this = other;
    detail::require<data_error>(other.experts() == experts() && other.slots() == slots(), "statistics of ",
                                other.slots(), " of ", other.experts(), " experts cannot be added to those of ",
                                slots(), " of ", experts(), '.');
    view().add(const_cast<routing_statistics&>(other).view());
    return *this;
  }

  statistics_view view() { return {&unit_, {experts_.data(), experts_.size()}}; }
  operator statistics_view() const { return const_cast<routing_statistics*>(this)->view(); }

  friend bool operator==(routing_statistics const&, routing_statistics const&) = default;

 private:
  unit_statistics unit_;
  std::vector<expert_statistics> experts_;
};

}  // namespace moiety
