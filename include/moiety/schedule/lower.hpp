// SPDX-License-Identifier: Apache-2.0
// From a schedule to what each rank really does: computations, sends and receives.
//
//   0SEND_F3   stage 0 sends its output of micro-batch 3          1RECV_F3   stage 1 receives it
//   1SEND_B3   stage 1 sends its input gradient                   0RECV_B3   stage 0 receives it
//
// There is one global order: computations by (end at unit costs, rank, position), each followed by its send, at which
// point the matching receive enters the other rank's list. Every list is a part of that order, and a send and its receive
// are one event of it, so ranks that run their lists in order never wait in a circle, even where a send returns only once
// it is received. lower() replays its result under exactly that rule before it returns it.
//
// Neighbouring stages on one rank hand over without a message. Messages of one edge between stages, in one direction,
// share a channel and come in the order in which they were sent; channels of different edges must not be mixed, since two
// edges can join the same two ranks.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/schedule/action.hpp>
#include <moiety/schedule/analysis.hpp>
#include <moiety/schedule/costs.hpp>
#include <moiety/schedule/schedule.hpp>
#include <moiety/schedule/shape.hpp>
#include <moiety/schedule/verify.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

enum class message : std::uint8_t { none, send, receive };

/// A computation, or one side of a message. For a message `what` is the stage that sends or receives, the micro-batch, and
/// forward for an activation, backward for a gradient.
struct operation {
  action what;
  message kind = message::none;
  int peer = -1;     // the other rank of a message
  int channel = -1;  // of a message

  friend constexpr bool operator==(operation const&, operation const&) = default;
};

inline std::ostream& operator<<(std::ostream& out, operation const& o) {
  if (o.kind == message::none) return out << o.what;
  return out << o.what.stage << (o.kind == message::send ? "SEND_" : "RECV_") << letter(o.what.type)
             << o.what.microbatch;
}

namespace detail {

/// What an action gives to another stage: the stage that receives, or −1.
constexpr int receiver_of(schedule_view const& plan, action const& a) {
  int const to = a.type == computation::forward ? a.stage + 1 : (sends_gradient(a.type) ? a.stage - 1 : -1);
  return to < plan.stages() && to >= 0 && plan.rank_of(to, a.microbatch) != plan.rank_of(a.stage, a.microbatch) ? to
                                                                                                                : -1;
}

/// Where an action's input comes from: the stage that sends, or −1 where it needs no message.
constexpr int sender_to(schedule_view const& plan, action const& a) {
  int const from = a.type == computation::forward ? a.stage - 1 : (sends_gradient(a.type) ? a.stage + 1 : -1);
  return from < plan.stages() && from >= 0 && plan.rank_of(from, a.microbatch) != plan.rank_of(a.stage, a.microbatch)
             ? from
             : -1;
}

/// Channels are numbered by (half of a bidirectional step, edge, direction).
constexpr int channel_of(schedule_view const& plan, int from, int to, int microbatch) {
  bool const mirrored = plan.bidirectional() && microbatch >= plan.microbatches() - plan.microbatches() / 2;
  return ((mirrored ? plan.stages() : 0) + std::min(from, to)) * 2 + (to < from ? 1 : 0);
}

}  // namespace detail

class lowered_schedule {
 public:
  /// See lower().
  explicit lowered_schedule(schedule_view const& plan) : ranks_(static_cast<std::size_t>(plan.ranks())) {
    struct event {
      std::int64_t end;
      int rank;
      action const* at;
    };
    std::vector<std::int64_t> const starts = start_times(plan, unit_costs);
    std::vector<event> events;
    for (int r = 0; r < plan.ranks(); ++r)
      for (action const* a = plan.begin(r); a != plan.end(r); ++a) {
        bool const joined = a + 1 != plan.end(r) && a[1].joined;
        std::int64_t const time = joined || a->joined
                                      ? detail::joined_duration(unit_costs, a[a->joined ? -1 : 0], a[a->joined ? 0 : 1])
                                      : unit_costs.of(a->type);
        events.push_back({starts[static_cast<std::size_t>(plan.index(a))] + time, r, a});
      }
    std::stable_sort(events.begin(), events.end(), [](event const& a, event const& b) {
      return std::pair(a.end, a.rank) < std::pair(b.end, b.rank);
    });
    for (std::size_t i = 0; i < events.size(); ++i) {
      action const* const a = events[i].at;
      list(events[i].rank).push_back({*a});
      bool const pair = i + 1 < events.size() && events[i + 1].at == a + 1 && a[1].joined;
      if (pair) continue;  // both parts are computed before either is sent
      if (a->joined) send(plan, a[-1]);
      send(plan, *a);
    }
    count_buffers(plan);
  }

  int ranks() const { return static_cast<int>(ranks_.size()); }
  std::span<operation const> rank(int r) const { return ranks_[static_cast<std::size_t>(r)]; }

  /// Most messages that a rank has received and not yet used: the buffers that it needs.
  std::int64_t receive_buffers(int r) const { return buffers_[static_cast<std::size_t>(r)]; }

 private:
  std::vector<operation>& list(int r) { return ranks_[static_cast<std::size_t>(r)]; }

  void send(schedule_view const& plan, action const& a) {
    int const to = detail::receiver_of(plan, a);
    if (to < 0) return;
    int const here = plan.rank_of(a.stage, a.microbatch), there = plan.rank_of(to, a.microbatch);
    int const channel = detail::channel_of(plan, a.stage, to, a.microbatch);
    computation const type = a.type == computation::forward ? computation::forward : computation::backward;
    list(here).push_back({{a.stage, a.microbatch, type}, message::send, there, channel});
    list(there).push_back({{to, a.microbatch, type}, message::receive, here, channel});
  }

  void count_buffers(schedule_view const& plan) {
    for (auto const& operations : ranks_) {
      std::int64_t held = 0, most = 0;
      for (operation const& o : operations) {
        if (o.kind == message::receive) ++held;
        if (o.kind == message::none && detail::sender_to(plan, o.what) >= 0) --held;
        most = std::max(most, held);
      }
      buffers_.push_back(most);
    }
  }

  std::vector<std::vector<operation>> ranks_;
  std::vector<std::int64_t> buffers_;
};

/// Runs lists of operations in order, where a send ends when it is received, and returns for each rank how many ended:
/// all of them, unless ranks wait in a circle or a message meets another one than its own.
inline std::vector<std::size_t> replay_rendezvous(std::span<std::vector<operation> const> ranks) {
  std::vector<std::size_t> done(ranks.size());
  std::vector<std::size_t> awake(ranks.size());
  for (std::size_t r = 0; r < ranks.size(); ++r) awake[r] = r;
  auto const matches = [](operation const& a, operation const& b) {
    return a.kind != b.kind && a.kind != message::none && b.kind != message::none && a.channel == b.channel &&
           a.what.microbatch == b.what.microbatch && a.what.type == b.what.type;
  };
  while (!awake.empty()) {
    std::size_t const r = awake.back();
    awake.pop_back();
    while (done[r] < ranks[r].size()) {
      operation const& o = ranks[r][done[r]];
      if (o.kind != message::none) {
        auto const peer = static_cast<std::size_t>(o.peer);
        bool const met = done[peer] < ranks[peer].size() &&
                         static_cast<std::size_t>(ranks[peer][done[peer]].peer) == r &&
                         matches(o, ranks[peer][done[peer]]);
        if (!met) break;
        ++done[peer];
        awake.push_back(peer);
      }
      ++done[r];
    }
  }
  return done;
}

/// The operations of a sound schedule; throws schedule_error, with the verdict, for any other.
inline lowered_schedule lower(schedule_view const& plan) {
  if (auto const v = verify(plan); !v) throw schedule_error(detail::sentence(v));
  lowered_schedule result(plan);
  std::vector<std::vector<operation>> lists;
  for (int r = 0; r < result.ranks(); ++r) lists.emplace_back(result.rank(r).begin(), result.rank(r).end());
  std::vector<std::size_t> const done = replay_rendezvous(lists);
  for (std::size_t r = 0; r < lists.size(); ++r)
    if (done[r] != lists[r].size()) throw schedule_error("the messages of this schedule wait in a circle.");
  return result;
}

}  // namespace moiety
