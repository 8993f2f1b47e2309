// SPDX-License-Identifier: Apache-2.0
// What ranks of one machine that are processes tell each other: boards in memory that all of them read.
//
// Each rank writes on its own board, which has a page for every other. A page keeps the notes of 16 operations: as 8 are in flight
// at most and every rank hears every other in each of them, the peer has finished with a note before its place is written again.
#pragma once

#include <moiety/backend/stream.hpp>
#include <moiety/backend/transport/mpi_parcels.hpp>
#include <moiety/backend/transport/mpi_rooms.hpp>
#include <moiety/core/config.hpp>

#include <mpi.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What a rank says of one operation to one peer.
struct board_note {
  static constexpr std::int64_t few_bytes = 928;

  std::atomic<std::int64_t> number{0};  // of the operation, from 1 on: it is said
  mpi_header header;
  room_place place;  // of rows that are more than few
  std::byte rows[few_bytes];
};
static_assert(std::atomic<std::int64_t>::is_always_lock_free && sizeof(board_note) == 1024);

/// What a rank has for one peer.
struct alignas(line_bytes) board_page {
  static constexpr std::int64_t operations = 16;

  std::array<board_note, operations> notes;
  /// As the number of a note: the peer's rows have been taken from their room.
  std::array<std::atomic<std::int64_t>, operations> taken;

  static std::size_t at(std::int64_t number) { return static_cast<std::size_t>(number % operations); }
};

/// The boards of a group: that of this rank, and those of its neighbours, the ranks of this machine that have one that it reads
/// and read its own.
class mpi_boards {
 public:
  /// Made by all ranks of `group` at once. `near`: which of them are of this machine.
  mpi_boards(MPI_Comm group, std::vector<bool> const& near, int rank) : pages_(near.size()) {
    struct announcement {
      room_place place;
      std::uint64_t token = 0;  // which a board begins with: another file of that name is none
    };
    constexpr std::int64_t before = line_bytes, page = sizeof(board_page);
    auto const size = near.size();
    std::int64_t const bytes = before + page * std::count(near.begin(), near.end(), true);
    announcement mine{{}, std::uint64_t{std::random_device{}()} << 32 | std::random_device{}()};
    std::byte* const own = board_.of(bytes);
    if (own != nullptr) {
      mine.place = board_.place(own);
      std::memcpy(own, &mine.token, sizeof mine.token);
      for (std::int64_t at = before; at < bytes; at += page) new (own + at) board_page{};
    }
    std::vector<announcement> all(size);
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, group);
    std::int64_t const from_me = before + page * std::count(near.begin(), near.begin() + rank, true);
    std::vector<char> read(size), read_by(size);
    std::int64_t to_peer = before;
    for (std::size_t r = 0; r < size; ++r) {
      if (!near[r]) continue;
      std::byte const* const theirs =
          own == nullptr || all[r].place.file < 0 ? nullptr : rooms_.read(all[r].place, bytes);
      if (theirs != nullptr && std::memcmp(theirs, &all[r].token, sizeof mine.token) == 0) {
        pages_[r] = {std::launder(reinterpret_cast<board_page*>(own + to_peer)),
                     std::launder(reinterpret_cast<board_page const*>(theirs + from_me))};
        read[r] = 1;
      }
      to_peer += page;
    }
    MPI_Alltoall(read.data(), 1, MPI_CHAR, read_by.data(), 1, MPI_CHAR, group);
    for (std::size_t r = 0; r < size; ++r)
      if (read_by[r] == 0) pages_[r] = {};
  }
  mpi_boards(mpi_boards const&) = delete;
  mpi_boards& operator=(mpi_boards const&) = delete;

  bool reaches(int peer) const { return pages(peer).mine != nullptr; }

  /// The note that is written to a peer about an operation, and that which has come; null: not yet.
  board_note& note(int peer, std::int64_t number) { return pages(peer).mine->notes[board_page::at(number)]; }
  board_note const* came(int peer, std::int64_t number) const {
    board_note const& it = pages(peer).theirs->notes[board_page::at(number)];
    return it.number.load(std::memory_order_acquire) == number + 1 ? &it : nullptr;
  }
  /// That the rows of a peer have been taken; whether the peer has said so.
  void take(int peer, std::int64_t number) {
    pages(peer).mine->taken[board_page::at(number)].store(number + 1, std::memory_order_release);
  }
  bool taken(int peer, std::int64_t number) const {
    return pages(peer).theirs->taken[board_page::at(number)].load(std::memory_order_acquire) == number + 1;
  }

  /// Rows that a peer has packed; null where they cannot be read.
  std::byte const* packed(room_place const& place, std::int64_t bytes) { return rooms_.read(place, bytes); }
  /// Rooms to pack rows in: the last ones given are the next taken.
  std::unique_ptr<shared_room> take_room() {
    if (spare_.empty()) return std::make_unique<shared_room>();
    auto room = std::move(spare_.back());
    spare_.pop_back();
    return room;
  }
  void give_room(std::unique_ptr<shared_room> room) { spare_.push_back(std::move(room)); }

 private:
  struct both {
    board_page* mine = nullptr;          // what this rank tells
    board_page const* theirs = nullptr;  // what it is told
  };
  both const& pages(int peer) const { return pages_[static_cast<std::size_t>(peer)]; }

  shared_room board_;
  rooms_of_others rooms_;
  std::vector<both> pages_;
  std::vector<std::unique_ptr<shared_room>> spare_;
};

}  // namespace detail

}  // namespace moiety
