// SPDX-License-Identifier: Apache-2.0
// How ranks of one machine that are processes exchange rows in an operation, by their boards.
//
// To a peer goes a note, which says what the sender does and how much follows. A few rows stand on the note; more are packed in a
// room of the sender, from where the receiver takes them straight to their place and then says so on its own board: two
// copies, and none by the system. Rows that are one large piece of memory follow as messages of MPI, which need no room.
#pragma once

#include <moiety/backend/stream.hpp>
#include <moiety/backend/transport/mpi_boards.hpp>
#include <moiety/backend/transport/mpi_parcels.hpp>
#include <moiety/backend/transport/mpi_rooms.hpp>
#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What a rank exchanges with its neighbours in one operation.
class board_exchange {
 public:
  struct incoming {
    int peer = 0;
    mpi_header wanted, came;
    incoming_rows rows;
    int tag = 0;  // of messages that follow
    bool here = false, packed = false;
  };

  /// With nobody.
  board_exchange() = default;
  board_exchange(mpi_boards& boards, std::int64_t number) : boards_(&boards), number_(number) {}

  bool reaches(int peer) const { return boards_ != nullptr && boards_->reaches(peer); }

  void expect(int peer, mpi_header const& wanted, incoming_rows const& rows, int tag) {
    in_.push_back({peer, wanted, {}, rows, tag});
  }

  /// Room for what is packed of rows to all ranks.
  void make_room(std::span<outgoing_rows const> to) {
    std::int64_t bytes = 0;
    for (std::size_t r = 0; r < to.size(); ++r)
      if (reaches(static_cast<int>(r)) && to_pack(to[r])) bytes += room_for(to[r]);
    if (bytes == 0) return;
    room_ = boards_->take_room();
    next_ = room_->of(bytes);
    // Ranks share the last cache, and read as much.
    how_ = stores_for(2 * bytes * static_cast<std::int64_t>(to.size()));
  }

  /// Tells a peer of its rows; false: they must follow as messages.
  bool tell(int peer, mpi_header const& header, outgoing_rows const& rows) {
    board_note& note = boards_->note(peer, number_);
    note.header = header;
    note.place = {};
    bool const few = rows.bytes() <= board_note::few_bytes, packs = next_ != nullptr && to_pack(rows);
    if (few) copy_rows(rows, together<std::byte>(note.rows, rows));
    if (packs) {
      copy_rows(rows, together(next_, rows), how_);
      note.place = room_->place(next_);
      next_ += room_for(rows);
      waits_for_.push_back(peer);
    }
    note.number.store(number_ + 1, std::memory_order_release);
    return few || packs;
  }

  /// Looks what has come. check(incoming) throws where a note is not as it should be; rest(incoming) gets what does not lie
  /// where this rank reads: it comes as messages, or is `packed` all the same.
  template <class Check, class Rest> mpi_progress poll(Check const& check, Rest const& rest) {
    std::size_t done = 0, before = done_;
    for (incoming& in : in_) {
      if (!in.here) {
        board_note const* const note = boards_->came(in.peer, number_);
        if (note == nullptr) continue;
        in.came = note->header;
        check(std::as_const(in));
        if (!take(in, *note)) rest(std::as_const(in));
        in.here = true;
      }
      ++done;
    }
    for (int& peer : waits_for_) {
      if (peer >= 0 && boards_->taken(peer, number_)) peer = -1;
      if (peer < 0) ++done;
    }
    done_ = done;
    if (done == in_.size() + waits_for_.size()) return mpi_progress::all;
    return done > before ? mpi_progress::some : mpi_progress::none;
  }

  /// All is there.
  void land() {
    if (room_ != nullptr) boards_->give_room(std::move(room_));
  }

  /// Adds the ranks that have said nothing, and those that have not taken their rows.
  void awaited(std::vector<int>& silent, std::vector<int>& slow) const {
    for (incoming const& in : in_)
      if (!in.here) silent.push_back(in.peer);
    std::copy_if(waits_for_.begin(), waits_for_.end(), std::back_inserter(slow), [](int peer) { return peer >= 0; });
  }
  /// How rows are written.
  stores how() const { return how_; }

 private:
  static constexpr std::int64_t large_bytes = std::int64_t{1} << 20;  // of one piece: a message

  static bool to_pack(outgoing_rows const& rows) {
    return rows.bytes() > board_note::few_bytes && (!rows.whole() || rows.bytes() <= large_bytes);
  }
  static std::int64_t room_for(outgoing_rows const& rows) {
    constexpr auto line = static_cast<std::int64_t>(line_bytes);
    return (rows.bytes() + line - 1) / line * line;
  }
  template <class Byte, class Other> static rows_block<Byte> together(Byte* data, rows_block<Other> const& rows) {
    return {data, rows.rows, rows.width, rows.width, nullptr};
  }

  bool take(incoming& in, board_note const& note) {
    std::int64_t const bytes = in.rows.bytes();
    if (bytes <= board_note::few_bytes) return copy_rows(together<std::byte const>(note.rows, in.rows), in.rows), true;
    in.packed = note.place.file >= 0;
    std::byte const* const there = in.packed ? boards_->packed(note.place, bytes) : nullptr;
    if (there == nullptr) return false;
    copy_rows(together(there, in.rows), in.rows, how_);
    boards_->take(in.peer, number_);
    return true;
  }

  mpi_boards* boards_ = nullptr;
  std::int64_t number_ = 0;
  std::vector<incoming> in_;
  std::vector<int> waits_for_;  // to take their rows; −1: has
  std::size_t done_ = 0;
  std::unique_ptr<shared_room> room_;
  std::byte* next_ = nullptr;  // where the next rows are packed
  stores how_ = stores::cached;
};

}  // namespace detail

}  // namespace moiety
