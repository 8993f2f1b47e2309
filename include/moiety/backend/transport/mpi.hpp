// SPDX-License-Identifier: Apache-2.0
// The transport whose ranks are processes of a job that MPI has launched. Rows lie in the host's memory.
//
//   using transport = mo::mpi;                                   in a deployment of as many ranks as the job has
//   auto ranks = mo::mpi_communicator::world({.deadline = 30s});  what a run makes
//
// Every rank sends to every other at once, and both check what the other does before they believe its rows. A communicator is
// used by one thread at a time. Ranks of one machine exchange rows in memory that they share (mpi_board_exchange.hpp), others as
// messages. Sends read their rows in place: messages of more than some kilobytes need the receiver inside a call, too. MPI's own
// sums: backend/transport/mpi_sums.hpp.
//
// comm_error on every rank: a rank that throws and so lets go of its communicators, calls that differ, and a rank that does not
// come while others wait for the deadline. Then messages under way have half a second before their memory may go. What no
// process can tell is its own death: there the launcher ends the job, as mpirun does, or the deadline comes.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/backend/transport/mpi_messages.hpp>
#include <moiety/backend/transport/mpi_sums.hpp>
#include <moiety/backend/transport/mpi_world.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class mpi_communicator : public mpi_sums<mpi_communicator> {
  friend mpi_sums<mpi_communicator>;
  using flight = detail::mpi_flight;

 public:
  static constexpr int in_flight = 8;  // operations of a rank that have begun and not finished

  /// One operation in flight. To let go of it unfinished is a failure of this rank.
  class request {
    friend mpi_communicator;
    flight flight_;
    outgoing_rows to_me_;
    incoming_rows from_me_;
    std::int64_t number_ = 0;
  };

  /// Messages on their way. To let go of them unfinished is a failure of this rank.
  class sending {
    friend mpi_communicator;
    flight flight_;
  };

  /// All ranks of the job. Messages have `piece` bytes at most; with `boards` those of one machine exchange rows in memory that
  /// they share. Both are the same on every rank.
  static mpi_communicator world(run_options const& options = {}, std::int64_t piece = std::int64_t{1} << 26,
                                bool boards = true) {
    auto of = std::make_shared<detail::mpi_world>(options, piece, boards);
    MPI_Comm const ranks = of->duplicate(of->control());
    return mpi_communicator(std::make_shared<detail::mpi_group>(std::move(of), ranks, "world"));
  }

  int rank() const { return group_->rank; }
  int size() const { return group_->size; }
  std::string const& name() const { return group_->name; }
  /// The training step that errors name.
  void at_step(std::int64_t step) { step_ = step; }

  request start(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    auto const ranks = static_cast<std::size_t>(size());
    detail::require<data_error>(to.size() == ranks && from.size() == ranks, what.name, " needs rows for ", ranks,
                                " ranks, but was given ", to.size(), " to send and ", from.size(), " to receive.");
    group_->world->begin();
    detail::require<state_error>(group_->started - group_->finished < in_flight, what.name, ": ", in_flight,
                                 " operations of this rank are in flight already.");
    request made;
    made.number_ = group_->started++;
    made.flight_ = flight(group_, what, step_, made.number_);
    made.to_me_ = to[static_cast<std::size_t>(rank())];
    made.from_me_ = from[static_cast<std::size_t>(rank())];
    auto const turn = static_cast<int>(made.number_ % window);
    detail::mpi_tags const tags{turn, window + turn};
    detail::mpi_header const header(what, 0, 0, made.number_, step_);
    for_others([&](int peer) {
      incoming_rows const& rows = from[static_cast<std::size_t>(peer)];
      made.flight_.expect(peer, header.of(rows), rows, tags);
    });
    made.flight_.make_room(to);
    for_others([&](int peer) {
      outgoing_rows const& rows = to[static_cast<std::size_t>(peer)];
      made.flight_.send(peer, header.of(rows), rows, tags);
    });
    return made;
  }

  void finish(request&& which) {
    detail::require<state_error>(!which.flight_.landed() && &which.flight_.group() == group_.get(),
                                 "finish was given a request that is finished, or of another group.");
    flight& all = which.flight_;
    detail::require<state_error>(which.number_ == group_->finished, all.what().name,
                                 " was to finish before an operation that began earlier.");
    outgoing_rows const& out = which.to_me_;
    incoming_rows const& in = which.from_me_;
    if (!out.same_size(in))
      disagree(all, rank(), {all.what(), out.rows, out.width, which.number_, step_},
               {all.what(), in.rows, in.width, which.number_, step_});
    detail::copy_rows(out, in, all.how());
    await(all);
    ++group_->finished;
  }

  /// Channels are 0 … 10000 at least; MPI's tags bound them.
  void send_recv(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    for (auto const& m : sends) check_message(m.peer, m.channel);
    for (auto const& m : receives) check_message(m.peer, m.channel);
    group_->world->begin();
    flight all(group_, {.name = message_name}, step_);
    for (auto const& m : receives)
      all.expect(m.peer, on_channel(m), {m.data, m.bytes, 1, 1, nullptr}, tags_of(m.channel));
    for (auto const& m : sends) all.send(m.peer, on_channel(m), {m.data, m.bytes, 1, 1, nullptr}, tags_of(m.channel));
    await(all);
  }

  sending start_sends(std::span<outgoing_message const> sends) {
    for (auto const& m : sends) check_message(m.peer, m.channel);
    group_->world->begin();
    sending made;
    made.flight_ = flight(group_, {.name = message_name}, step_);
    for (auto const& m : sends)
      made.flight_.send(m.peer, on_channel(m), {m.data, m.bytes, 1, 1, nullptr}, tags_of(m.channel));
    return made;
  }
  bool sent(sending& which) {
    if (!which.flight_.landed() && which.flight_.poll([](auto const&) {}) == detail::mpi_progress::all)
      which.flight_.land();
    return which.flight_.landed();
  }
  void finish(sending&& which) {
    detail::require<state_error>(!which.flight_.landed() && &which.flight_.group() == group_.get(),
                                 "finish was given sends that are finished, or of another group.");
    await(which.flight_);
  }

  mpi_communicator split(int colour, int key, std::string const& name) {
    std::vector<int> colours(static_cast<std::size_t>(size()));
    all_gather<int>({&colour, 1}, colours);
    barrier();  // nobody has given up in the call before: MPI's own split has no deadline
    auto const first = static_cast<int>(std::find(colours.begin(), colours.end(), colour) - colours.begin());
    MPI_Comm part = MPI_COMM_NULL;
    int const code = MPI_Comm_split(group_->comm, first, key, &part);
    if (code != MPI_SUCCESS) fail(comm_fault::aborted, "split", "MPI_Comm_split says " + detail::mpi_text(code));
    return mpi_communicator(std::make_shared<detail::mpi_group>(group_->world, part, name));
  }

  /// Ends the communication of the run, for the reason given.
  [[noreturn]] void fail(comm_fault fault, char const* call, std::string const& why) {
    detail::mpi_world& world = *group_->world;
    world.fail({fault, call, world.rank(), step_, text(call, why)});
    world.rethrow();
  }

 private:
  static constexpr char const* message_name = "send_recv";
  static constexpr int window = 1024;  // of tags, by the number of the operation

  explicit mpi_communicator(std::shared_ptr<detail::mpi_group> group) : group_(std::move(group)) {}

  /// Those after this rank first, so that not all ranks send to the same one.
  template <class F> void for_others(F const& f) const {
    for (int turn = 1; turn < size(); ++turn) f((rank() + turn) % size());
  }

  static detail::mpi_tags tags_of(int channel) { return {2 * window + 2 * channel, 2 * window + 2 * channel + 1}; }

  template <class Byte> detail::mpi_header on_channel(rank_message<Byte> const& m) const {
    return {{.name = message_name, .width = 1, .root = m.channel}, m.bytes, 1, 0, step_};
  }

  void check_message(int peer, int channel) const {
    detail::require<data_error>(peer >= 0 && peer < size(), "send_recv was given rank ", peer, " of ", size(),
                                " ranks.");
    int const last = (detail::largest_tag() - 2 * window - 1) / 2;
    detail::require<data_error>(channel >= 0 && channel <= last, "send_recv was given channel ", channel,
                                ", and MPI has room for 0 to ", last, '.');
  }

  void await(flight& all) {
    bool const there = group_->world->wait([&] {
      return all.poll([&](auto const& in) {
        if (!in.came.same_operation(in.wanted) || !in.came.same_rows(in.wanted))
          disagree(all, in.peer, in.came, in.wanted);
      });
    });
    if (!there) late(all);
    all.land();
  }

  [[noreturn]] void disagree(flight const& all, int peer, detail::mpi_header const& came,
                             detail::mpi_header const& wanted) {
    int const me = group_->world->rank();
    std::string why;
    if (!came.same_operation(wanted))
      why = detail::sentence("it called ", came.what().words(), ", call ", came.number + 1, " in its step ", came.step,
                             ", rank ", me, ' ', wanted.what().words());
    else if (std::string_view(all.what().name) == message_name)
      why = detail::sentence("it sends ", came.rows, " bytes on channel ", came.root, " where rank ", me, " expects ",
                             wanted.rows);
    else
      why = detail::sentence("it sends ", came.rows, " rows of ", came.row_width, " bytes where rank ", me, " expects ",
                             wanted.rows, " of ", wanted.row_width);
    int const at_fault = group_->world_rank(peer);
    blame(comm_fault::mismatch, all, at_fault, detail::sentence("rank ", at_fault, " disagrees: ", why));
  }

  [[noreturn]] void late(flight const& all) {
    std::vector<int> const ranks = all.awaited();
    std::string why = ranks.size() > 1 ? "ranks " : "rank ";
    for (int const peer : ranks) why += detail::sentence(peer == ranks[0] ? "" : ", ", group_->world_rank(peer));
    blame(comm_fault::timeout, all, group_->world_rank(ranks[0]),
          why + " did not come within " + group_->world->deadline_words());
  }

  [[noreturn]] void blame(comm_fault fault, flight const& all, int at_fault, std::string const& why) {
    char const* const call = all.what().name;
    group_->world->fail({fault, call, at_fault, step_, text(call, why)});
    group_->world->rethrow();
  }

  std::string text(char const* call, std::string const& why) const {
    return detail::sentence(call, " among the ", size(), ' ', group_->name, " ranks, call ", group_->started, ", step ",
                            step_, ": ", why, '.');
  }

  std::shared_ptr<detail::mpi_group> group_;
  std::int64_t step_ = 0;
};
static_assert(communicator<mpi_communicator>);

struct mpi {
  static constexpr bool single_rank = false;
  using communicator = mpi_communicator;
};

}  // namespace moiety
