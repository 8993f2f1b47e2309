// SPDX-License-Identifier: Apache-2.0
// What a group of ranks shares that are threads of this process, and how one of them waits for another, reads its memory and
// ends the run.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/backend/transport/thread_world.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

class thread_group {
 public:
  static constexpr int in_flight = 8;  // operations of a rank that have begun and not finished

  thread_group(std::shared_ptr<thread_world> of, std::vector<int> ranks, std::string of_name)
      : world(std::move(of)), name(std::move(of_name)), world_ranks(std::move(ranks)), members(world_ranks.size()) {}

  struct post {
    rank_operation what;
    std::vector<outgoing_rows> to;
  };
  struct letter {
    outgoing_message sent;
    std::atomic<bool>* taken;
  };
  struct alignas(64) member {
    std::atomic<std::int64_t> posted{0}, done{0};  // operations that have begun, and that have all their rows
    std::array<post, in_flight> posts;
    std::map<std::pair<int, int>, std::deque<letter>> letters;  // to this rank, by sender and channel
    std::int64_t finished = 0, step = 0;                        // known to this rank alone
    std::atomic<bool> in_call{false};
  };

  member& of(int rank) { return members[static_cast<std::size_t>(rank)]; }
  int world_rank(int rank) const { return world_ranks[static_cast<std::size_t>(rank)]; }
  int size() const { return static_cast<int>(members.size()); }

  std::shared_ptr<thread_world> world;
  std::string name;
  std::vector<int> world_ranks;
  std::vector<member> members;
  std::mutex letters_mutex;
  std::map<std::pair<std::int64_t, int>, std::shared_ptr<thread_group>> parts;  // by number of the split, and colour
};

/// One rank of a group, or none.
class thread_rank {
 public:
  thread_rank() = default;
  thread_rank(std::shared_ptr<thread_group> group, int rank) : group_(std::move(group)), rank_(rank) {}

  friend bool operator==(thread_rank const&, thread_rank const&) = default;
  bool none() const { return group_ == nullptr; }
  int rank() const { return rank_; }
  int world_rank() const { return group_->world_rank(rank_); }
  thread_group& group() const { return *group_; }
  thread_group::member& member() const { return group_->of(rank_); }

  void check_open() const {
    if (group_->world->failed()) quit();
  }

  /// Waits until met(peer). Of all ranks that have not met it, the deadline tells.
  template <class Met> void await(rank_operation const& what, int peer, Met const& met) const {
    int const awaited = group_->world_rank(peer);
    switch (group_->world->wait([&] { return met(peer); }, awaited)) {
      case waited::met: return;
      case waited::failed: quit();
      case waited::left:
        fail(comm_fault::remote, what.name, awaited, sentence("rank ", awaited, " has ended and will not come"));
      case waited::late:
        std::string absent = sentence("rank ", awaited);
        for (int other = 0; other < group_->size(); ++other)
          if (other != peer && !met(other)) absent += sentence(" and rank ", group_->world_rank(other));
        fail(comm_fault::timeout, what.name, awaited,
             sentence(absent, " did not come within ", group_->world->deadline_words()));
    }
  }

  /// Calls read() while the peer's memory is certain to be there.
  template <class Read> void read_from(int peer, Read const& read) const {
    reading const mark(*group_->world, group_->world_rank(peer));
    check_open();
    read();
  }

  [[noreturn]] void disagrees(rank_operation const& what, int peer, std::string const& why) const {
    int const other = group_->world_rank(peer);
    fail(comm_fault::mismatch, what.name, other, sentence("rank ", other, " disagrees: ", why));
  }

  /// Ends the communication of the run, for the reason given.
  [[noreturn]] void fail(comm_fault fault, char const* call, int at_fault, std::string const& why) const {
    end(fault, call, at_fault, why);
    quit();
  }

  /// Before memory goes that others may read: ends the run, then returns when none reads it.
  void let_go(char const* call) const noexcept {
    if (!group_->world->failed())
      end(comm_fault::aborted, call, world_rank(), sentence("rank ", world_rank(), " let go of it unfinished"));
    group_->world->await_readers(world_rank());
  }

 private:
  void end(comm_fault fault, char const* call, int at_fault, std::string const& why) const {
    group_->world->fail({fault, call, at_fault, member().step,
                         sentence(call, " among the ", group_->size(), ' ', group_->name, " ranks, call ",
                                  member().posted.load(), ", step ", member().step, ": ", why, '.')});
  }

  /// Throws what the run failed with.
  [[noreturn]] void quit() const { group_->world->rethrow(world_rank()); }

  std::shared_ptr<thread_group> group_;
  int rank_ = 0;
};

/// Letters on their way to other ranks, whose memory stays as it is until they are taken. To let go of them sooner is a failure
/// of this rank.
class thread_letters {
 public:
  thread_letters(thread_rank const& of, std::span<outgoing_message const> sends) : thread_letters(of, sends, {}) {
    {
      std::scoped_lock const lock(of_.group().letters_mutex);
      for (std::size_t i = 0; i < sends_.size(); ++i)
        of_.group().of(sends_[i].peer).letters[{of_.rank(), sends_[i].channel}].push_back({sends_[i], &taken_[i]});
    }
    of_.group().world->wake();
  }
  thread_letters(thread_letters&&) noexcept = default;
  thread_letters& operator=(thread_letters&&) = delete;
  ~thread_letters() {
    if (!of_.none() && !taken()) of_.let_go("send_recv");
  }

  thread_rank const& sender() const { return of_; }
  bool taken() const {
    for (std::size_t i = 0; i < sends_.size(); ++i)
      if (!taken_[i].load()) return false;
    return true;
  }
  void await(rank_operation const& what) const {
    for (std::size_t i = 0; i < sends_.size(); ++i)
      of_.await(what, sends_[i].peer, [&](int peer) { return peer != sends_[i].peer || taken_[i].load(); });
  }

 private:
  struct unsent {};
  thread_letters(thread_rank const& of, std::span<outgoing_message const> sends, unsent)
      : of_(of), sends_(sends.begin(), sends.end()), taken_(std::make_unique<std::atomic<bool>[]>(sends.size())) {}

  thread_rank of_;
  std::vector<outgoing_message> sends_;
  std::unique_ptr<std::atomic<bool>[]> taken_;
};

/// The call that a rank is in: one at a time.
class thread_call {
 public:
  thread_call(thread_rank const& of, char const* name) : in_call_(of.member().in_call) {
    require<state_error>(!in_call_.exchange(true), name, ": another thread is in a call of this communicator.");
  }
  thread_call(thread_call const&) = delete;
  thread_call& operator=(thread_call const&) = delete;
  ~thread_call() { in_call_.store(false); }

 private:
  std::atomic<bool>& in_call_;
};

}  // namespace detail

}  // namespace moiety
