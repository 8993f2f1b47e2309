// SPDX-License-Identifier: Apache-2.0
// How long the actions of a schedule take, in any unit: integers, so that results are exact and alike on every machine.
//
//   unit_costs                         F = I = W = 1, B = 2, nothing hidden, no hop
//   step_costs{.forward = 2, .hop = 1} the same for every stage
//   stage_costs{costs_of_each, hop}    one step_costs a stage
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/action.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace moiety::inline MOIETY_ABI {

/// One stage's times for one micro-batch.
struct step_costs {
  static constexpr std::int64_t sum = -1;

  std::int64_t forward = 1;
  std::int64_t input_gradient = 1;
  std::int64_t weight_gradient = 1;
  std::int64_t backward = sum;  // in one piece; sum: input_gradient + weight_gradient
  std::int64_t hidden = 0;      // what a joined step saves over its forward and backward one after the other
  std::int64_t hop = 0;         // until a result is on another rank

  constexpr std::int64_t of(computation type) const {
    return type == computation::forward           ? forward
           : type == computation::input_gradient  ? input_gradient
           : type == computation::weight_gradient ? weight_gradient
           : backward == sum                      ? input_gradient + weight_gradient
                                                  : backward;
  }

  /// These costs, for any stage.
  constexpr step_costs const& of_stage(int) const { return *this; }
};

inline constexpr step_costs unit_costs{};

/// Times that differ from stage to stage, with one hop for all edges. Refers to `stages`.
struct stage_costs {
  std::span<step_costs const> stages;
  std::int64_t hop = 0;

  constexpr step_costs const& of_stage(int stage) const { return stages[static_cast<std::size_t>(stage)]; }
};

template <class C>
concept cost_model = requires(C const& costs) {
  { costs.of_stage(0) } -> std::convertible_to<step_costs const&>;
  { costs.hop } -> std::convertible_to<std::int64_t>;
};

namespace detail {

/// The time of a forward and a backward as one step.
template <cost_model Costs>
constexpr std::int64_t joined_duration(Costs const& costs, action const& forward, action const& backward) {
  step_costs const& ahead = costs.of_stage(forward.stage);
  step_costs const& back = costs.of_stage(backward.stage);
  std::int64_t const time = ahead.forward + back.of(computation::backward);
  std::int64_t const saved = ahead.hidden < back.hidden ? ahead.hidden : back.hidden;
  return saved < time ? time - saved : 0;
}

}  // namespace detail

}  // namespace moiety
