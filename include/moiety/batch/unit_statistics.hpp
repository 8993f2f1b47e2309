// SPDX-License-Identifier: Apache-2.0
// What balance losses need to know of one unit of tokens: per expert the number of slots c_e and the sum of
// probabilities Σ_t p_te, over all experts Σ_t lse_t², and the number of tokens.
//
// Where a loss asks for it, also per group of experts the number of tokens that the group is sent: those with at least one
// slot in it. Groups are equal and contiguous, as the experts of one device are. They are not counted by default (0 groups).
// Where one asks, also per expert the load expected under the noise of logits, Σ_t P_te, see kernels/expected_load_row.hpp.
//
// Counts are 64-bit integers and sums are exact, so statistics of parts add up to those of the whole, to the last bit
// and in any order. A loss is a pure function of its unit's statistics; its gradient under accumulation may also take the
// counts of other micro-batches, see batch/step_counts.hpp.
#pragma once

#include <moiety/core/array_view.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/exact_sum.hpp>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

struct expert_statistics {
  std::int64_t count = 0;    // slots that asked for the expert
  std::int64_t dropped = 0;  // those of them that its capacity had no room for
  std::int64_t reached = 0;  // of the first expert of a group: tokens that are sent to the group
  exact_sum probability{};

  expert_statistics& operator+=(expert_statistics const& other) {
    count += other.count, dropped += other.dropped, reached += other.reached, probability += other.probability;
    return *this;
  }
  friend bool operator==(expert_statistics const&, expert_statistics const&) = default;
};

struct unit_statistics {
  std::int64_t tokens = 0;
  std::int64_t slots = 0;   // k
  std::int64_t chosen = 0;  // slots that an expert was chosen for: k a token, unless the selection leaves some empty
  std::int64_t groups = 0;  // of experts whose tokens are counted
  exact_sum lse_squared{};

  /// Of units with the same slots and groups.
  unit_statistics& operator+=(unit_statistics const& other) {
    tokens += other.tokens, chosen += other.chosen, lse_squared += other.lse_squared;
    slots = other.slots, groups = other.groups;
    return *this;
  }
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
  counts_view earlier{};                   // of this step's earlier micro-batches
  counts_view last_step{};                 // of the last whole step
  array_view<exact_sum> expected_loads{};  // [E], or none

  MOIETY_HD std::int64_t tokens() const { return unit->tokens; }
  MOIETY_HD std::int64_t slots() const { return unit->slots; }
  MOIETY_HD std::int64_t chosen() const { return unit->chosen; }

  void add(statistics_view const& other) const {
    *unit += *other.unit;
    for (std::size_t e = 0; e < experts.size(); ++e) experts[e] += other.experts[e];
    for (std::size_t e = 0; e < other.expected_loads.size(); ++e) expected_loads[e] += other.expected_loads[e];
  }
};

}  // namespace moiety
