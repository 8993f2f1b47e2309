// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/lower.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <map>
#include <set>
#include <sstream>
#include <tuple>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using operations = std::vector<std::vector<mo::operation>>;

operations lists_of(mo::lowered_schedule const& lowered) {
  operations all;
  for (int r = 0; r < lowered.ranks(); ++r) all.emplace_back(lowered.rank(r).begin(), lowered.rank(r).end());
  return all;
}

/// Receive just before use, send just after.
operations naive(mo::schedule_view const& plan) {
  operations all(static_cast<std::size_t>(plan.ranks()));
  for (int r = 0; r < plan.ranks(); ++r) {
    auto& list = all[static_cast<std::size_t>(r)];
    auto const message = [&](mo::action const& a, int other, mo::message kind) {
      if (other < 0) return;
      mo::action what = a;
      what.joined = false;
      what.type = a.type == mo::computation::forward ? a.type : mo::computation::backward;
      list.push_back({what, kind, plan.rank_of(other, a.microbatch),
                      kind == mo::message::send ? mo::detail::channel_of(plan, a.stage, other, a.microbatch)
                                                : mo::detail::channel_of(plan, other, a.stage, a.microbatch)});
    };
    for (mo::action const& a : plan.rank(r)) {
      message(a, mo::detail::sender_to(plan, a), mo::message::receive);
      list.push_back({a});
      message(a, mo::detail::receiver_of(plan, a), mo::message::send);
    }
  }
  return all;
}

bool all_ended(operations const& lists) {
  auto const done = mo::replay_rendezvous(lists);
  for (std::size_t r = 0; r < lists.size(); ++r)
    if (done[r] != lists[r].size()) return false;
  return true;
}

/// Whether messages are received in the order in which they are sent, in one queue for each pair of ranks, or for each
/// channel.
bool in_order(operations const& lists, bool by_channel) {
  using message = std::tuple<int, mo::computation, int>;  // receiving stage, direction, micro-batch
  std::map<std::tuple<int, int, int>, std::vector<message>> sent, received;
  for (std::size_t r = 0; r < lists.size(); ++r)
    for (mo::operation const& o : lists[r]) {
      if (o.kind == mo::message::none) continue;
      int const channel = by_channel ? o.channel : 0, rank = static_cast<int>(r);
      int const forward = o.what.type == mo::computation::forward ? 1 : -1;
      if (o.kind == mo::message::send)
        sent[{rank, o.peer, channel}].emplace_back(o.what.stage + forward, o.what.type, o.what.microbatch);
      else
        received[{o.peer, rank, channel}].emplace_back(o.what.stage, o.what.type, o.what.microbatch);
    }
  return sent == received;
}

template <class Order> constexpr mo::pipeline_shape shape_of() {
  bool const one = mo::fault_of<Order>({.ranks = 4, .chunks = 1, .microbatches = 8}) == mo::shape_fault::none;
  return {.ranks = 4, .chunks = one ? 1 : 2, .microbatches = 8};
}

}  // namespace

TEST_CASE_TEMPLATE("each order lowers to lists in which every message has two ends, in order on its channel", Order,
                   mo::gpipe, mo::one_f_one_b, mo::interleaved_1f1b, mo::interleaved_1f1b_overlapped, mo::looped_bfs,
                   mo::zb_h1, mo::zb_h2, mo::interleaved_zb1p, mo::zb_v, mo::dual_pipe, mo::dual_pipe_v) {
  auto const plan = mo::make_schedule(Order{}, shape_of<Order>());
  mo::schedule_view const view = plan;
  auto const lowered = mo::lower(plan);
  std::map<int, std::vector<int>> sent, received;  // by channel, micro-batches in order
  std::map<int, std::set<std::pair<int, int>>> ends;
  for (int r = 0; r < lowered.ranks(); ++r) {
    std::size_t next = 0;
    for (mo::operation const& o : lowered.rank(r)) {
      if (o.kind == mo::message::none) CHECK(o.what == view.rank(r)[next++]);
      if (o.kind == mo::message::send)
        sent[o.channel].push_back(o.what.microbatch), ends[o.channel].insert({r, o.peer});
      if (o.kind == mo::message::receive)
        received[o.channel].push_back(o.what.microbatch), ends[o.channel].insert({o.peer, r});
    }
    CHECK(next == view.rank(r).size());
    CHECK(lowered.receive_buffers(r) >= 1);
  }
  CHECK(sent == received);
  for (auto const& [channel, pairs] : ends) CHECK(pairs.size() == 1);  // one sender, one receiver
  CHECK(all_ended(lists_of(lowered)));
}

TEST_CASE_TEMPLATE("receiving just before use and sending just after waits for ever, but for gpipe", Order, mo::gpipe,
                   mo::gpipe_lifo, mo::one_f_one_b, mo::interleaved_1f1b, mo::interleaved_1f1b_overlapped,
                   mo::looped_bfs, mo::zb_h1, mo::zb_h2, mo::interleaved_zb1p, mo::zb_v, mo::dual_pipe,
                   mo::dual_pipe_v) {
  mo::pipeline_shape shape = shape_of<Order>();
  if (Order::name == mo::looped_bfs::name) shape.chunks = 2;
  constexpr bool ends = Order::name == mo::gpipe::name || Order::name == mo::gpipe_lifo::name;
  CHECK(all_ended(naive(mo::make_schedule(Order{}, shape))) == ends);
}

TEST_CASE_TEMPLATE("one queue for each pair of ranks mixes messages of a V, a channel for each edge does not", Order,
                   mo::one_f_one_b, mo::interleaved_1f1b, mo::looped_bfs, mo::zb_h2, mo::zb_v, mo::dual_pipe,
                   mo::dual_pipe_v) {
  auto const plan = mo::make_schedule(Order{}, shape_of<Order>());
  constexpr bool v = Order::placed == mo::placement::v;
  CHECK(in_order(naive(plan), /*by_channel=*/false) == !v);
  CHECK(in_order(naive(plan), /*by_channel=*/true));
  CHECK(in_order(lists_of(mo::lower(plan)), /*by_channel=*/true));
}

TEST_CASE("with two ranks, one queue mixes the messages of two edges") {
  mo::pipeline_shape const shape{.ranks = 2, .chunks = 2, .microbatches = 8};
  auto const plan = mo::make_schedule(mo::interleaved_zb1p{}, shape);
  CHECK_FALSE(in_order(naive(plan), /*by_channel=*/false));
  CHECK(in_order(lists_of(mo::lower(plan)), /*by_channel=*/true));
}

TEST_CASE("a replay sees a message that meets another one than its own") {
  auto lists = lists_of(mo::lower(mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 2})));
  CHECK(all_ended(lists));
  for (auto& o : lists[1])
    if (o.kind == mo::message::receive) o.what.microbatch = 1 - o.what.microbatch;
  CHECK_FALSE(all_ended(lists));
}

TEST_CASE("stages on one rank hand over without a message") {
  auto const v = mo::lower(mo::make_schedule(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = 4}));
  for (mo::operation const& o : v.rank(1))
    if (o.kind != mo::message::none) CHECK((o.what.stage == 1 || o.what.stage == 2));  // edges 0–1 and 2–3, not 1–2
  auto const alone = mo::lower(mo::make_schedule(mo::one_f_one_b{}, {.ranks = 1, .microbatches = 3}));
  CHECK(alone.rank(0).size() == 6);
  CHECK(alone.receive_buffers(0) == 0);
}

TEST_CASE("operations print as stage, direction and micro-batch; unsound schedules are not lowered") {
  auto const lowered = mo::lower(mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 1}));
  std::ostringstream out;
  for (int r = 0; r < 2; ++r)
    for (mo::operation const& o : lowered.rank(r)) out << o << ' ';
  CHECK(out.str() == "0F0 0SEND_F0 0RECV_B0 0B0 1RECV_F0 1F0 1B0 1SEND_B0 ");
  mo::schedule const open("own", {.microbatches = 1}, {0}, false, {{{0, 0, mo::computation::forward}}});
  CHECK_THROWS_WITH_AS(mo::lower(open), "own: 0B0 on rank 0, position 1, is missing.\n0: 0F0", mo::schedule_error);
}
