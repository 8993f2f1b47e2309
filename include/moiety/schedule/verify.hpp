// SPDX-License-Identifier: Apache-2.0
// Whether a schedule is complete, ordered and free of deadlock.
//
//   static_assert(mo::verify(plan));                 at compile time
//   if (auto const v = mo::verify(plan); !v) std::cout << v;
//
// A verdict converts to bool. Printed, it names rank, position and action of the first flaw, shows the grid with the
// actions that cannot run marked, and for a deadlock the cycle of waits. It refers to the schedule.
//
// Ranks take their actions in order and messages are matched by (stage, micro-batch), so whether a schedule ends does not
// depend on times. How messages are ordered on a channel is the business of lower().
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/costs.hpp>
#include <moiety/schedule/order.hpp>
#include <moiety/schedule/replay.hpp>
#include <moiety/schedule/schedule.hpp>

#include <cstdint>
#include <ostream>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// What can be wrong with a schedule, in the order in which it is looked for.
enum class flaw : std::uint8_t {
  none,
  outside,         // a stage or micro-batch that the schedule does not have
  wrong_rank,      // the stage lives elsewhere
  wrong_pair,      // joined steps are a forward and then a full backward
  repeated,        // the second time
  before_forward,  // a gradient ahead of its own forward on the same rank
  before_input,    // a weight gradient ahead of its own input gradient
  missing,         // nowhere in the schedule
  deadlock,        // ranks wait for each other for ever
};

constexpr std::string_view sentence_of(flaw what) {
  switch (what) {
    case flaw::none: return "is complete, ordered and free of deadlock";
    case flaw::outside: return "names a stage or micro-batch that the schedule does not have";
    case flaw::wrong_rank: return "is on the wrong rank";
    case flaw::wrong_pair: return "is joined, but only a full backward can be, to the forward before it";
    case flaw::repeated: return "is there twice";
    case flaw::before_forward: return "comes before its own forward has ended";
    case flaw::before_input: return "comes before its own input gradient";
    case flaw::missing: return "is missing";
    case flaw::deadlock: return "waits for ever";
  }
  return {};
}

struct verdict {
  schedule_view plan;
  flaw what = flaw::none;
  int rank = 0;
  std::int64_t position = 0;  // among the actions of the rank; their number for a missing action
  action where = {};

  constexpr explicit operator bool() const { return what == flaw::none; }
};

namespace detail {

/// Which actions of a stage and micro-batch have been seen.
struct seen_actions {
  bool forward = false, input = false, weight = false;

  /// What is wrong with the next action, which is noted if nothing is.
  constexpr flaw add(computation type) {
    bool const gradient = sends_gradient(type), last = type == computation::weight_gradient;
    if (type == computation::forward ? forward : (gradient ? input : weight)) return flaw::repeated;
    if (type != computation::forward && !forward) return flaw::before_forward;
    if (last && !input) return flaw::before_input;
    forward = forward || type == computation::forward;
    input = input || gradient;
    weight = weight || last || type == computation::backward;
    return flaw::none;
  }
};

/// What is wrong with an action whatever comes before it.
constexpr flaw flaw_of_action(schedule_view const& plan, int r, action const* a) {
  if (a->stage < 0 || a->stage >= plan.stages() || a->microbatch < 0 || a->microbatch >= plan.microbatches())
    return flaw::outside;
  if (plan.rank_of(a->stage, a->microbatch) != r) return flaw::wrong_rank;
  if (!a->joined) return flaw::none;
  bool const pair = a != plan.begin(r) && a[-1].type == computation::forward && !a[-1].joined;
  return pair && a->type == computation::backward ? flaw::none : flaw::wrong_pair;
}

/// The first action that is wrong by itself, else the first that is out of order on its own rank, else the first that is
/// nowhere, else none.
constexpr verdict find_local_flaw(schedule_view const& plan) {
  for (int r = 0; r < plan.ranks(); ++r)
    for (action const* a = plan.begin(r); a != plan.end(r); ++a)
      if (flaw const what = flaw_of_action(plan, r, a); what != flaw::none)
        return {plan, what, r, a - plan.begin(r), *a};

  int const m = plan.microbatches();
  table<seen_actions> seen(std::int64_t{plan.stages()} * m);
  for (int r = 0; r < plan.ranks(); ++r)
    for (action const* a = plan.begin(r); a != plan.end(r); ++a) {
      bool const own = a->joined && a[-1].stage == a->stage && a[-1].microbatch == a->microbatch;
      flaw const what = own ? flaw::before_forward : seen[std::int64_t{a->stage} * m + a->microbatch].add(a->type);
      if (what != flaw::none) return {plan, what, r, a - plan.begin(r), *a};
    }

  for (int s = 0; s < plan.stages(); ++s)
    for (int i = 0; i < m; ++i) {
      seen_actions const& has = seen[std::int64_t{s} * m + i];
      if (has.forward && has.input && has.weight) continue;
      int const r = plan.rank_of(s, i);
      computation const type = !has.forward ? computation::forward
                               : !has.input ? computation::backward
                                            : computation::weight_gradient;
      return {plan, flaw::missing, r, plan.end(r) - plan.begin(r), {s, i, type}};
    }
  return {plan};
}

}  // namespace detail

constexpr verdict verify(schedule_view const& plan) {
  replay const run(plan, unit_costs);
  if (run.complete()) return {plan};
  verdict const local = detail::find_local_flaw(plan);
  if (!local) return local;
  for (int r = 0; r < plan.ranks(); ++r)
    if (run.next(r) != plan.end(r)) return {plan, flaw::deadlock, r, run.next(r) - plan.begin(r), *run.next(r)};
  return {plan};
}

/// Where a rank stands still in a deadlock, and which action it waits for.
struct blocked_rank {
  int rank;
  action const* at;
  action awaits;
};

/// Every rank that stands still, in order; empty for a sound schedule. Meant for schedules whose flaw is a deadlock.
inline std::vector<blocked_rank> blocked(schedule_view const& plan) {
  replay const run(plan, unit_costs);
  auto const ran = [&](int stage, action const& of) {
    int const r = plan.rank_of(stage, of.microbatch);
    for (action const* a = plan.begin(r); a != run.next(r); ++a) {
      bool const same_way = of.type == computation::forward ? a->type == of.type : sends_gradient(a->type);
      if (a->stage == stage && a->microbatch == of.microbatch && same_way) return true;
    }
    return false;
  };
  auto const awaited = [&](action a) {  // by a forward from the stage before, by a gradient from the stage behind
    a.stage += a.type == computation::forward ? -1 : 1;
    a.joined = false;
    return a;
  };
  std::vector<blocked_rank> result;
  for (int r = 0; r < plan.ranks(); ++r) {
    action const* at = run.next(r);
    if (at == plan.end(r)) continue;
    action awaits = awaited(*at);
    bool const joined = at + 1 != plan.end(r) && at[1].joined;
    if (joined && (awaits.stage < 0 || ran(awaits.stage, awaits))) awaits = awaited(at[1]);
    result.push_back({r, at, awaits});
  }
  return result;
}

/// A cycle of ranks, each of which waits for an action of the next one; empty for a sound schedule.
inline std::vector<blocked_rank> wait_cycle(schedule_view const& plan) {
  std::vector<blocked_rank> const all = blocked(plan);
  if (all.empty()) return {};
  auto const after = [&](std::size_t i) {
    int const r = plan.rank_of(all[i].awaits.stage, all[i].awaits.microbatch);
    std::size_t next = 0;
    while (next + 1 < all.size() && all[next].rank != r) ++next;
    return next;
  };
  std::size_t start = 0;
  for (std::size_t steps = 0; steps < all.size(); ++steps) start = after(start);  // now on the cycle
  std::vector<blocked_rank> cycle{all[start]};
  for (std::size_t i = after(start); i != start; i = after(i)) cycle.push_back(all[i]);
  return cycle;
}

/// The sentence, the cycle of waits if there is one, and the grid with every action that cannot run between > and <.
inline std::ostream& operator<<(std::ostream& out, verdict const& v) {
  out << v.plan.name() << ": ";
  if (v) return out << "the schedule " << sentence_of(v.what) << '.';
  out << v.where << " on rank " << v.rank << ", position " << v.position << ", " << sentence_of(v.what) << '.';
  bool const deadlock = v.what == flaw::deadlock;
  std::vector<blocked_rank> const cycle = deadlock ? wait_cycle(v.plan) : std::vector<blocked_rank>{};
  for (blocked_rank const& b : cycle)
    out << "\n  rank " << b.rank << " stands at " << *b.at << " and waits for " << b.awaits;
  replay const run(v.plan, unit_costs);
  for (int r = 0; r < v.plan.ranks(); ++r) {
    out << "\n" << r << ':';
    for (action const* a = v.plan.begin(r); a != v.plan.end(r); ++a) {
      bool const marked = deadlock ? a == run.next(r) : r == v.rank && a - v.plan.begin(r) == v.position;
      out << (marked ? " >" : " ") << *a << (marked ? "<" : "");
    }
  }
  return out;
}

}  // namespace moiety
