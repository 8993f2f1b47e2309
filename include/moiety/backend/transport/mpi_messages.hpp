// SPDX-License-Identifier: Apache-2.0
// What one operation exchanges between ranks that are processes: notes on boards where two ranks have them in common
// (mpi_board_exchange.hpp), else messages.
//
// To every peer goes a header, which says what the sender does and how much follows. A few kilobytes of rows go along with it;
// more follow in pieces, packed first where they do not lie together. They are received once their header has been checked,
// straight into their place where that is one piece of memory: not every MPI stops at the end of a place that is too small.
// Messages go on while a rank is inside a call.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/backend/transport/mpi_board_exchange.hpp>
#include <moiety/backend/transport/mpi_parcels.hpp>
#include <moiety/backend/transport/mpi_world.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

class mpi_flight {
 public:
  using incoming = mpi_parcels::incoming;
  using outgoing = mpi_parcels::outgoing;

  /// `number` counts the operations of a group, in which all ranks exchange something; without one, all are messages.
  mpi_flight(std::shared_ptr<mpi_group> group, rank_operation const& what, std::int64_t step, std::int64_t number = -1)
      : group_(std::move(group)),
        what_(what),
        step_(step),
        all_(group_->spare.take()),
        near_(number < 0 ? board_exchange() : board_exchange(*group_->boards, number)) {}
  mpi_flight() = default;
  mpi_flight(mpi_flight&&) = default;
  mpi_flight& operator=(mpi_flight&& other) noexcept {
    std::swap(group_, other.group_);
    std::swap(what_, other.what_);
    std::swap(step_, other.step_);
    std::swap(all_, other.all_);
    std::swap(near_, other.near_);
    return *this;
  }
  /// To let go of messages that have not landed is a failure of this rank.
  ~mpi_flight() {
    if (landed()) return;
    mpi_world& world = *group_->world;
    world.fail({comm_fault::aborted, what_.name, world.rank(), step_, "a rank let go of an operation in flight."});
    abandon();
  }

  bool landed() const { return all_ == nullptr; }
  rank_operation const& what() const { return what_; }
  mpi_group const& group() const { return *group_; }

  void expect(int peer, mpi_header const& wanted, incoming_rows const& rows, mpi_tags tags) {
    if (near_.reaches(peer)) return near_.expect(peer, wanted, rows, tags.rows);
    constexpr std::int64_t most = header_bytes + few_bytes;
    incoming& in = all_->in.next();
    in.peer = peer, in.tag = tags.rows, in.wanted = wanted, in.rows = rows, in.packed = false;
    receive(in.first.of(most), most, peer, tags.header, static_cast<int>(all_->in.used().size()) - 1);
  }

  /// Room for what boards do not hold of rows to all ranks, before they are sent.
  void make_room(std::span<outgoing_rows const> to) { near_.make_room(to); }

  void send(int peer, mpi_header const& header, outgoing_rows const& rows, mpi_tags tags) {
    if (near_.reaches(peer)) {
      if (!near_.tell(peer, header, rows)) send_pieces(peer, rows, tags.rows, all_->out.next().rows);
      return;
    }
    std::int64_t const along = goes_along(rows.bytes()) ? rows.bytes() : 0;
    outgoing& out = all_->out.next();
    std::byte* const first = out.first.of(header_bytes + few_bytes);
    std::memcpy(first, &header, sizeof header);
    if (along > 0) copy_rows(rows, together(first + header_bytes, rows.rows, rows.width));
    post(first, header_bytes + along, peer, tags.header);
    if (along < rows.bytes()) send_pieces(peer, rows, tags.rows, out.rows);
  }

  /// Looks what has come. check(incoming), of either kind, throws where a header is wrong; its rows stay where they are.
  template <class Check> mpi_progress poll(Check const& check) {
    std::pair const before = last_;
    last_ = {near_.poll(check, [&](board_exchange::incoming const& it) { receive_rest(it); }), poll_messages(check)};
    auto const [notes, messages] = last_;
    if (notes == messages) return notes;
    bool const news = notes == mpi_progress::some || messages == mpi_progress::some || last_ != before;
    return news ? mpi_progress::some : mpi_progress::none;
  }

  /// All is there: rows go where they belong.
  void land() {
    for (incoming const& in : all_->in.used())
      if (in.packed) copy_rows(together<std::byte const>(in.together.data(), in.rows.rows, in.rows.width), in.rows);
    group_->spare.give(std::move(all_));
    near_.land();
  }

  /// The ranks that this one waits for: those that have said nothing, else those whose rows are under way.
  std::vector<int> awaited() const {
    std::vector<int> silent, slow;
    near_.awaited(silent, slow);
    for (std::size_t i = 0; i < all_->requests.size(); ++i) {
      if (all_->requests[i] == MPI_REQUEST_NULL) continue;
      (all_->notes[i].header >= 0 ? silent : slow).push_back(all_->notes[i].peer);
    }
    std::vector<int>& ranks = silent.empty() ? slow : silent;
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    return ranks;
  }

  stores how() const { return near_.how(); }  // rows are written

 private:
  static constexpr std::int64_t header_bytes = sizeof(mpi_header), few_bytes = 3072;  // within what MPI sends at once

  template <class Byte> static rows_block<Byte> together(Byte* data, std::int64_t rows, std::int64_t width) {
    return {data, rows, width, width, nullptr};
  }

  template <class Check> mpi_progress poll_messages(Check const& check) {
    if (all_->open == 0) return mpi_progress::all;
    auto& requests = all_->requests;
    int done = 0;
    all_->indices.resize(requests.size());
    must(MPI_Testsome(static_cast<int>(requests.size()), requests.data(), &done, all_->indices.data(),
                      MPI_STATUSES_IGNORE),
         "MPI_Testsome");
    if (done == MPI_UNDEFINED) return mpi_progress::all;
    for (int i = 0; i < done; ++i) {
      mpi_note const about = all_->notes[static_cast<std::size_t>(all_->indices[static_cast<std::size_t>(i)])];
      if (about.header < 0) continue;
      incoming& in = all_->in.used()[static_cast<std::size_t>(about.header)];
      std::memcpy(&in.came, in.first.data(), sizeof in.came);
      check(std::as_const(in));
      receive_rows(in);
    }
    all_->open -= done;
    if (all_->open == 0) return mpi_progress::all;
    return done > 0 ? mpi_progress::some : mpi_progress::none;
  }

  /// Whether rows of so many bytes are part of the first message.
  bool goes_along(std::int64_t bytes) const { return bytes <= std::min(few_bytes, group_->world->piece()); }

  template <class Post> void in_pieces(std::int64_t bytes, Post const& post_one) {
    std::int64_t const piece = group_->world->piece();
    for (std::int64_t at = 0; at < bytes; at += piece) post_one(at, std::min(piece, bytes - at));
  }

  void receive_rows(incoming& in) {
    incoming_rows const& rows = in.rows;
    if (goes_along(rows.bytes()))
      return copy_rows(together<std::byte const>(in.first.data() + header_bytes, rows.rows, rows.width), rows);
    receive_pieces(in);
  }

  void receive_rest(board_exchange::incoming const& it) {
    if (it.packed)
      abort(
          sentence("rank ", group_->world->rank(), " cannot read what rank ", group_->world_rank(it.peer), " packed"));
    incoming& in = all_->in.next();
    in.peer = it.peer, in.tag = it.tag, in.rows = it.rows;
    receive_pieces(in);
  }

  void receive_pieces(incoming& in) {
    in.packed = !in.rows.whole();
    std::byte* const to = in.packed ? in.together.of(in.rows.bytes()) : in.rows.row(0);
    in_pieces(in.rows.bytes(),
              [&](std::int64_t at, std::int64_t bytes) { receive(to + at, bytes, in.peer, in.tag, -1); });
  }

  void send_pieces(int peer, outgoing_rows const& rows, int tag, mpi_room& packed) {
    std::byte const* const from = rows.whole() ? rows.row(0) : packed.of(rows.bytes());
    if (!rows.whole()) copy_rows(rows, together(packed.data(), rows.rows, rows.width));
    in_pieces(rows.bytes(), [&](std::int64_t at, std::int64_t bytes) { post(from + at, bytes, peer, tag); });
  }

  void receive(void* to, std::int64_t bytes, int peer, int tag, int header) {
    MPI_Request request = MPI_REQUEST_NULL;
    must(MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, peer, tag, group_->comm, &request), "MPI_Irecv");
    all_->add(request, {peer, header, true});
  }

  void post(void const* from, std::int64_t bytes, int peer, int tag) {
    MPI_Request request = MPI_REQUEST_NULL;
    must(MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, peer, tag, group_->comm, &request), "MPI_Isend");
    all_->add(request, {peer, -1, false});
  }

  void must(int code, char const* call) {
    if (code != MPI_SUCCESS) abort(sentence(call, " on rank ", group_->world->rank(), " says ", mpi_text(code)));
  }

  [[noreturn]] void abort(std::string const& why) {
    mpi_world& world = *group_->world;
    world.fail(
        {comm_fault::aborted, what_.name, world.rank(), step_,
         sentence(what_.name, " among the ", group_->size, ' ', group_->name, " ranks, step ", step_, ": ", why, '.')});
    world.rethrow();
  }

  /// After a failure: waits a little for messages under way, then leaves to MPI what has not gone.
  void abandon() noexcept {
    if (mpi_finalised()) return;
    auto& requests = all_->requests;
    for (std::size_t i = 0; i < requests.size(); ++i)
      if (requests[i] != MPI_REQUEST_NULL && all_->notes[i].received) MPI_Cancel(&requests[i]);
    int done = 0;
    while (MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), done == 0) {
      if (std::chrono::steady_clock::now() > group_->world->grace()) break;
      std::this_thread::yield();
    }
    if (done == 0) keep_for_ever(std::move(all_));
  }

  std::shared_ptr<mpi_group> group_;
  rank_operation what_;
  std::int64_t step_ = 0;
  std::unique_ptr<mpi_parcels> all_;
  board_exchange near_;
  std::pair<mpi_progress, mpi_progress> last_{};  // of notes, of messages
};

}  // namespace detail

}  // namespace moiety
