// SPDX-License-Identifier: Apache-2.0
// The transport whose ranks are threads of this process: for tests, for one machine, and as the meaning of all others.
//
//   using transport = mo::threads;                       in a deployment of any number of ranks
//   mo::run<mine>(body, {.deadline = 30s});
//
// A rank posts where its rows lie, and each rank copies what is meant for it straight from there: one copy, no buffers.
// Waiting ranks are awake for a short while where every rank has a processor, then asleep.
//
// A rank that throws, or whose function returns while others still wait for it, ends the waiting of all: comm_error. So does
// the deadline, which names the ranks that did not come. A rank that has failed leaves only when no other reads its memory.
//
// A communicator is a handle: copies are the same rank of the same group. Two threads in calls of one rank are a state_error.
#pragma once

#include <moiety/backend/stream.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/backend/transport/rows.hpp>
#include <moiety/backend/transport/thread_group.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class thread_communicator : public collectives<thread_communicator> {
  using group_type = detail::thread_group;

 public:
  using sending = detail::thread_letters;

  /// One operation in flight. To let go of it unfinished is a failure of this rank.
  class request {
   public:
    request(detail::thread_rank const& of, rank_operation const& what, std::int64_t number,
            std::vector<incoming_rows> from)
        : of_(of), what_(what), number_(number), from_(std::move(from)) {}
    request(request&&) noexcept = default;
    request& operator=(request&&) = delete;
    ~request() {
      if (!of_.none()) of_.let_go(what_.name);
    }

   private:
    friend thread_communicator;
    detail::thread_rank of_;
    rank_operation what_;
    std::int64_t number_;
    std::vector<incoming_rows> from_;
  };

  thread_communicator(std::shared_ptr<group_type> group, int rank) : me_(std::move(group), rank) {}

  int rank() const { return me_.rank(); }
  int size() const { return me_.group().size(); }
  std::string const& name() const { return me_.group().name; }
  /// The training step that errors name.
  void at_step(std::int64_t step) { me_.member().step = step; }

  request start(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    auto const ranks = static_cast<std::size_t>(size());
    detail::require<data_error>(to.size() == ranks && from.size() == ranks, what.name, " needs rows for ", ranks,
                                " ranks, but was given ", to.size(), " to send and ", from.size(), " to receive.");
    detail::thread_call const call(me_, what.name);
    me_.check_open();
    group_type::member& me = me_.member();
    std::int64_t const number = me.posted.load();
    detail::require<state_error>(number - me.finished < group_type::in_flight, what.name, ": ", group_type::in_flight,
                                 " operations of this rank are in flight already.");
    group_type::post& post = me.posts[slot(number)];
    post.what = what;
    post.to.assign(to.begin(), to.end());
    request begun(me_, what, number, {from.begin(), from.end()});
    me.posted.store(number + 1);
    me_.group().world->wake();
    return begun;
  }

  void finish(request&& which) {
    std::int64_t coming = 0;
    for (incoming_rows const& in : which.from_) coming += in.bytes();
    stores const how = stores_for(2 * coming * size());  // ranks share the last cache, for what they read too
    finish(std::move(which),
           [&](outgoing_rows const& from, incoming_rows const& to) { detail::copy_rows(from, to, how); });
  }
  /// The same of rows that copy(from, to) moves: those of a device.
  template <class Copy> void finish(request&& which, Copy const& copy) {
    detail::thread_call const call(me_, "finish");
    detail::require<state_error>(which.of_ == me_,
                                 "finish was given a request that is finished, or of another communicator.");
    group_type::member& me = me_.member();
    detail::require<state_error>(which.number_ == me.finished, which.what_.name,
                                 " was to finish before an operation that began earlier.");
    for (int turn = 1; turn <= size(); ++turn) {
      int const peer = (rank() + turn) % size();
      me_.await(which.what_, peer, [&](int of) { return me_.group().of(of).posted.load() > which.number_; });
      me_.read_from(peer, [&] { take(which, me_.group().of(peer).posts[slot(which.number_)], peer, copy); });
    }
    me.done.store(which.number_ + 1);
    me_.group().world->wake();
    for (int turn = 1; turn < size(); ++turn)
      me_.await(which.what_, (rank() + turn) % size(),
                [&](int of) { return me_.group().of(of).done.load() > which.number_; });
    ++me.finished;
    which.of_ = {};
  }

  void send_recv(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    rank_operation const what{.name = "send_recv"};
    detail::thread_call const call(me_, what.name);
    me_.check_open();
    for (auto const& m : sends) check_peer(m.peer);
    for (auto const& m : receives) check_peer(m.peer);
    sending const sent(me_, sends);
    for (auto const& m : receives) receive(what, m);
    sent.await(what);
  }

  sending start_sends(std::span<outgoing_message const> sends) {
    detail::thread_call const call(me_, "start_sends");
    me_.check_open();
    for (auto const& m : sends) check_peer(m.peer);
    return {me_, sends};
  }
  bool sent(sending& which) const { return which.taken(); }
  void finish(sending&& which) {
    detail::thread_call const call(me_, "finish");
    detail::require<state_error>(which.sender() == me_,
                                 "finish was given sends that are finished, or of another rank.");
    sending const all(std::move(which));
    all.await({.name = "send_recv"});
  }

  thread_communicator split(int colour, int key, std::string const& name) {
    struct choice {
      int colour, key;
    };
    choice const mine{colour, key};
    std::vector<choice> all(static_cast<std::size_t>(size()));
    all_gather<choice>({&mine, 1}, all);
    std::vector<int> members;
    for (int r = 0; r < size(); ++r)
      if (all[static_cast<std::size_t>(r)].colour == colour) members.push_back(r);
    std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
      return all[static_cast<std::size_t>(a)].key < all[static_cast<std::size_t>(b)].key;
    });
    auto const place = static_cast<int>(std::find(members.begin(), members.end(), rank()) - members.begin());
    group_type& group = me_.group();
    std::pair const which{me_.member().finished, colour};
    std::shared_ptr<group_type> part;
    {
      std::scoped_lock const lock(group.letters_mutex);
      auto& made = group.parts[which];
      if (made == nullptr) {
        for (int& r : members) r = group.world_rank(r);
        made = std::make_shared<group_type>(group.world, std::move(members), name);
      }
      part = made;
    }
    barrier();
    if (place == 0) {
      std::scoped_lock const lock(group.letters_mutex);
      group.parts.erase(which);
    }
    thread_communicator made(std::move(part), place);
    made.at_step(me_.member().step);
    return made;
  }

  /// Ends the communication of the run, for the reason given.
  [[noreturn]] void fail(comm_fault fault, char const* call, std::string const& why) {
    me_.fail(fault, call, me_.world_rank(), why);
  }

 private:
  static std::size_t slot(std::int64_t number) { return static_cast<std::size_t>(number % group_type::in_flight); }

  void check_peer(int peer) const {
    detail::require<data_error>(peer >= 0 && peer < size(), "send_recv was given rank ", peer, " of ", size(),
                                " ranks.");
  }

  /// Copies what is meant for this rank.
  template <class Copy> void take(request const& which, group_type::post const& post, int peer, Copy const& copy) {
    if (!(post.what == which.what_))
      me_.disagrees(
          which.what_, peer,
          detail::sentence("it called ", post.what.words(), ", rank ", me_.world_rank(), ' ', which.what_.words()));
    outgoing_rows const& out = post.to[static_cast<std::size_t>(rank())];
    incoming_rows const& in = which.from_[static_cast<std::size_t>(peer)];
    if (!out.same_size(in))
      me_.disagrees(which.what_, peer,
                    detail::sentence("it sends ", out.rows, " rows of ", out.width, " bytes where rank ",
                                     me_.world_rank(), " expects ", in.rows, " of ", in.width));
    copy(out, in);
  }

  void receive(rank_operation const& what, incoming_message const& m) {
    std::deque<group_type::letter>* box = nullptr;
    {
      std::scoped_lock const lock(me_.group().letters_mutex);
      box = &me_.member().letters[{m.peer, m.channel}];
    }
    group_type::letter found{};
    me_.await(what, m.peer, [&](int of) {
      if (of != m.peer) return true;
      std::scoped_lock const lock(me_.group().letters_mutex);
      if (box->empty()) return false;
      found = box->front();
      box->pop_front();
      return true;
    });
    me_.read_from(m.peer, [&] {
      if (found.sent.bytes != m.bytes)
        me_.disagrees(what, m.peer,
                      detail::sentence("it sends ", found.sent.bytes, " bytes on channel ", m.channel, " where rank ",
                                       me_.world_rank(), " expects ", m.bytes));
      if (m.bytes > 0) std::memcpy(m.data, found.sent.data, static_cast<std::size_t>(m.bytes));
      found.taken->store(true);
    });
    me_.group().world->wake();
  }

  detail::thread_rank me_;
};

static_assert(communicator<thread_communicator>);

struct threads {
  static constexpr bool single_rank = false;
  using communicator = thread_communicator;
};

}  // namespace moiety
