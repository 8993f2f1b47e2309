// SPDX-License-Identifier: Apache-2.0
// What a schedule costs in time and memory. Times are in the units of the cost model; see replay.hpp for the rules.
//
//   makespan          from the first start to the last end
//   bubble            makespan − the work of the busiest rank: what a step with a barrier at its end loses
//   rank_span_bubble  most over ranks of (last end − first start − work): what is lost where ranks go on on their own, as
//                     the zero-bubble papers count
//   idle_fraction     idle time of all ranks / (ranks · makespan)
//   peak_activations  most micro-batches whose activations a rank holds at once, over its stages; a forward takes one when
//                     it starts, the backward or the weight gradient gives it back when it ends
//
// All are constexpr; a schedule that verify() refuses throws schedule_error (and does not compile where constant).
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/costs.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/replay.hpp>
#include <moiety/schedule/schedule.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// A complete replay.
template <cost_model Costs>
constexpr replay<Costs> timed(schedule_view const& plan, Costs const& costs, std::int64_t* starts = nullptr) {
  for (int s = 0; s < plan.stages(); ++s) {
    step_costs const& c = costs.of_stage(s);
    if (c.forward < 0 || c.input_gradient < 0 || c.weight_gradient < 0 || c.backward < step_costs::sum || c.hidden < 0)
      throw schedule_error("the time of a step must not be negative.");
  }
  if (costs.hop < 0) throw schedule_error("a hop must not take negative time.");
  return replay<Costs>(plan, costs, starts);
}

template <cost_model Costs> constexpr void demand_complete(replay<Costs> const& run) {
  if (!run.complete()) throw schedule_error("an unsound schedule has no times: verify() says what is wrong.");
}

}  // namespace detail

template <cost_model Costs> constexpr std::int64_t makespan(schedule_view const& plan, Costs const& costs) {
  auto const run = detail::timed(plan, costs);
  detail::demand_complete(run);
  return run.makespan();
}

template <cost_model Costs> constexpr std::int64_t bubble(schedule_view const& plan, Costs const& costs) {
  auto const run = detail::timed(plan, costs);
  detail::demand_complete(run);
  std::int64_t most = 0;
  for (int r = 0; r < plan.ranks(); ++r) most = run.work(r) > most ? run.work(r) : most;
  return run.makespan() - most;
}

template <cost_model Costs> constexpr std::int64_t rank_span_bubble(schedule_view const& plan, Costs const& costs) {
  auto const run = detail::timed(plan, costs);
  detail::demand_complete(run);
  std::int64_t most = 0;
  for (int r = 0; r < plan.ranks(); ++r) {
    std::int64_t const lost = run.end(r) - run.begin(r) - run.work(r);
    most = lost > most ? lost : most;
  }
  return most;
}

template <cost_model Costs> constexpr double idle_fraction(schedule_view const& plan, Costs const& costs) {
  auto const run = detail::timed(plan, costs);
  detail::demand_complete(run);
  std::int64_t work = 0;
  for (int r = 0; r < plan.ranks(); ++r) work += run.work(r);
  std::int64_t const all = plan.ranks() * run.makespan();
  return all == 0 ? 0 : static_cast<double>(all - work) / static_cast<double>(all);
}

/// Start of every action, by schedule_view::index; both parts of a joined step start at once.
template <cost_model Costs> std::vector<std::int64_t> start_times(schedule_view const& plan, Costs const& costs) {
  std::vector<std::int64_t> starts(static_cast<std::size_t>(plan.size()));
  detail::demand_complete(detail::timed(plan, costs, starts.data()));
  return starts;
}

/// When a micro-batch's activations are given back: saved inputs by the weight gradient, what only the input gradient
/// reads by that.
enum class release : std::uint8_t { after_weight_gradient, after_input_gradient };

/// The peak of one rank, with `size_of(stage)` for each micro-batch that a stage holds.
template <class SizeOf>
constexpr std::int64_t peak_activations(schedule_view const& plan, int rank, SizeOf const& size_of,
                                        release when = release::after_weight_gradient) {
  std::int64_t held = 0, peak = 0;
  for (action const* a = plan.begin(rank); a != plan.end(rank); ++a) {
    bool const gives_back = a->type == computation::backward ||
                            a->type == (when == release::after_weight_gradient ? computation::weight_gradient
                                                                               : computation::input_gradient);
    if (a->type == computation::forward) held += size_of(a->stage);
    if (gives_back) held -= size_of(a->stage);
    peak = held > peak ? held : peak;
  }
  return peak;
}

constexpr std::int64_t peak_activations(schedule_view const& plan, int rank,
                                        release when = release::after_weight_gradient) {
  return peak_activations(
      plan, rank, [](int) { return std::int64_t{1}; }, when);
}

}  // namespace moiety
