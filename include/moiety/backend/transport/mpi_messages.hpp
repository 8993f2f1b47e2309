// SPDX-License-Identifier: Apache-2.0
// The messages of one operation between ranks that are processes.
//
// To every peer goes a header, which says what the sender does and how much follows. A few kilobytes of rows go along with it;
// more follow in pieces, and those that do not lie together are packed first. They are received once their header has been
// checked, straight into their place where that is one piece of memory: not every MPI stops at the end of a place that is too
// small. Messages go on while a rank is inside a call.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
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
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What a rank says it does before its rows.
struct mpi_header {
  mpi_header() = default;
  mpi_header(rank_operation const& what, std::int64_t of_rows, std::int64_t of_width, std::int64_t of_number,
             std::int64_t in_step)
      : width(what.width),
        count(what.count),
        rows(of_rows),
        row_width(of_rows > 0 ? of_width : 0),
        number(of_number),
        step(in_step),
        root(what.root) {
    copy_text(name, what.name);
  }

  char name[40] = {};
  std::int64_t width = 0, count = 0, rows = 0, row_width = 0, number = 0, step = 0, root = 0;

  bool same_operation(mpi_header const& other) const { return what() == other.what() && number == other.number; }
  bool same_rows(mpi_header const& other) const { return rows == other.rows && row_width == other.row_width; }
  rank_operation what() const { return {name, width, count, static_cast<int>(root)}; }
};

struct mpi_tags {
  int header, rows;
};

class mpi_flight {
 public:
  struct incoming {
    int peer, tag;
    mpi_header wanted, came;
    incoming_rows rows;
    std::unique_ptr<std::byte[]> first, packed;
  };

  /// Room for messages to and from so many.
  mpi_flight(std::shared_ptr<mpi_group> group, rank_operation const& what, std::int64_t step, std::size_t to,
             std::size_t from)
      : group_(std::move(group)), what_(what), step_(step) {
    out_.reserve(to);
    in_.reserve(from);
  }
  mpi_flight(mpi_flight const&) = delete;
  mpi_flight& operator=(mpi_flight const&) = delete;
  /// To let go of messages that have not landed is a failure of this rank.
  ~mpi_flight() {
    if (landed_) return;
    mpi_world& world = *group_->world;
    world.fail({comm_fault::aborted, what_.name, world.rank(), step_, "a rank let go of an operation in flight."});
    abandon();
  }

  rank_operation const& what() const { return what_; }
  mpi_group const& group() const { return *group_; }
  std::int64_t step() const { return step_; }

  void expect(int peer, mpi_header const& wanted, incoming_rows const& rows, mpi_tags tags) {
    constexpr std::int64_t most = header_bytes + few_bytes;
    incoming& in = in_.emplace_back(incoming{peer, tags.rows, wanted, {}, rows, bytes_of(most), {}});
    receive(in.first.get(), most, peer, tags.header, static_cast<int>(in_.size()) - 1);
  }

  void send(int peer, mpi_header const& header, outgoing_rows const& rows, mpi_tags tags) {
    std::int64_t const along = goes_along(rows.bytes()) ? rows.bytes() : 0;
    outgoing& out = out_.emplace_back(outgoing{bytes_of(header_bytes + along), {}});
    std::memcpy(out.first.get(), &header, sizeof header);
    if (along > 0) copy_rows(rows, together(out.first.get() + header_bytes, rows.rows, rows.width));
    post(out.first.get(), header_bytes + along, peer, tags.header);
    if (along == rows.bytes()) return;
    if (!rows.whole()) out.packed = bytes_of(rows.bytes());
    if (!rows.whole()) copy_rows(rows, together(out.packed.get(), rows.rows, rows.width));
    std::byte const* const from = rows.whole() ? rows.row(0) : out.packed.get();
    in_pieces(rows.bytes(), [&](std::int64_t at, std::int64_t bytes) { post(from + at, bytes, peer, tags.rows); });
  }

  /// Looks what has come. check(incoming) throws where a header is not as it should be; then its rows stay where they are.
  template <class Check> mpi_progress poll(Check const& check) {
    int done = 0;
    indices_.resize(requests_.size());
    must(
        MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &done, indices_.data(), MPI_STATUSES_IGNORE),
        "MPI_Testsome");
    if (done == MPI_UNDEFINED) return mpi_progress::all;
    for (int i = 0; i < done; ++i) {
      note const about = notes_[static_cast<std::size_t>(indices_[static_cast<std::size_t>(i)])];
      if (about.header < 0) continue;
      incoming& in = in_[static_cast<std::size_t>(about.header)];
      std::memcpy(&in.came, in.first.get(), sizeof in.came);
      check(std::as_const(in));
      receive_rows(in);
    }
    return done > 0 ? mpi_progress::some : mpi_progress::none;
  }

  /// All is there: rows go where they belong.
  void land() {
    for (incoming const& in : in_)
      if (in.packed != nullptr)
        copy_rows(together<std::byte const>(in.packed.get(), in.rows.rows, in.rows.width), in.rows);
    landed_ = true;
  }

  /// The ranks that this one waits for: those that have said nothing, else those whose messages are under way.
  std::vector<int> awaited() const {
    std::vector<int> silent, slow;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      (notes_[i].header >= 0 ? silent : slow).push_back(notes_[i].peer);
    }
    std::vector<int>& ranks = silent.empty() ? slow : silent;
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    return ranks;
  }

 private:
  static constexpr std::int64_t header_bytes = sizeof(mpi_header), few_bytes = 4096;

  struct outgoing {
    std::unique_ptr<std::byte[]> first, packed;
  };
  struct note {
    int peer;
    int header;  // of which incoming rows; -1 for other messages
    bool received;
  };

  template <class Byte> static rows_block<Byte> together(Byte* data, std::int64_t rows, std::int64_t width) {
    return {data, rows, width, width, nullptr};
  }

  static std::unique_ptr<std::byte[]> bytes_of(std::int64_t count) {
    return std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(count));
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
      return copy_rows(together<std::byte const>(in.first.get() + header_bytes, rows.rows, rows.width), rows);
    if (!rows.whole()) in.packed = bytes_of(rows.bytes());
    std::byte* const to = rows.whole() ? rows.row(0) : in.packed.get();
    in_pieces(rows.bytes(), [&](std::int64_t at, std::int64_t bytes) { receive(to + at, bytes, in.peer, in.tag, -1); });
  }

  void receive(void* to, std::int64_t bytes, int peer, int tag, int header) {
    MPI_Request request = MPI_REQUEST_NULL;
    must(MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, peer, tag, group_->comm, &request), "MPI_Irecv");
    requests_.push_back(request);
    notes_.push_back({peer, header, true});
  }

  void post(void const* from, std::int64_t bytes, int peer, int tag) {
    MPI_Request request = MPI_REQUEST_NULL;
    must(MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, peer, tag, group_->comm, &request), "MPI_Isend");
    requests_.push_back(request);
    notes_.push_back({peer, -1, false});
  }

  void must(int code, char const* call) {
    if (code == MPI_SUCCESS) return;
    mpi_world& world = *group_->world;
    world.fail({comm_fault::aborted, what_.name, world.rank(), step_,
                sentence(what_.name, " among the ", group_->size, ' ', group_->name, " ranks, step ", step_, ": ", call,
                         " on rank ", world.rank(), " says ", mpi_text(code), '.')});
    world.rethrow();
  }

  /// After a failure: waits a little for messages under way, then leaves to MPI what has not gone.
  void abandon() noexcept {
    if (mpi_finalised()) return;
    for (std::size_t i = 0; i < requests_.size(); ++i)
      if (requests_[i] != MPI_REQUEST_NULL && notes_[i].received) MPI_Cancel(&requests_[i]);
    int done = 0;
    while (MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE), done == 0) {
      if (std::chrono::steady_clock::now() > group_->world->grace()) break;
      std::this_thread::yield();
    }
    if (done != 0) return;
    for (MPI_Request& request : requests_)
      if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
    keep_for_ever(std::move(out_));
    keep_for_ever(std::move(in_));
  }

  std::shared_ptr<mpi_group> group_;
  rank_operation what_;
  std::int64_t step_;
  std::vector<outgoing> out_;
  std::vector<incoming> in_;
  std::vector<MPI_Request> requests_;
  std::vector<note> notes_;
  std::vector<int> indices_;
  bool landed_ = false;
};

}  // namespace detail

}  // namespace moiety
