// SPDX-License-Identifier: Apache-2.0
// What can be known of a call to NCCL before it is made: NCCL itself neither checks sizes nor what other ranks call.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// What a rank is about to do with another, as it says to all where calls are checked.
struct nccl_note {
  nccl_note() = default;
  nccl_note(rank_operation const& what, std::int64_t of_rows, std::int64_t of_width, std::int64_t of_number)
      : width(what.width),
        count(what.count),
        root(what.root),
        rows(of_rows),
        row_width(of_rows > 0 ? of_width : 0),
        number(of_number) {
    std::copy_n(what.name, std::min(std::strlen(what.name), sizeof name - 1), name);
  }

  char name[40] = {};
  std::int64_t width = 0, count = 0, root = 0, rows = 0, row_width = 0, number = 0;

  rank_operation what() const { return {name, width, count, static_cast<int>(root)}; }
  bool same_call(nccl_note const& other) const { return what() == other.what() && number == other.number; }
  bool same_rows(nccl_note const& other) const { return rows == other.rows && row_width == other.row_width; }
};

/// Two ranks of a group that do not fit, and why.
struct nccl_disagreement {
  int from, to;
  std::string why;
};

/// The first pair that does not fit, in notes [size × 2 × size]: of each rank what it sends to each, then what it expects of
/// each. Every rank finds the same.
inline std::optional<nccl_disagreement> disagreement_in(std::span<nccl_note const> notes, int size) {
  auto const at = [&](int of, int half, int peer) -> nccl_note const& {
    return notes[static_cast<std::size_t>((2 * of + half) * size + peer)];
  };
  for (int to = 1; to < size; ++to)
    if (nccl_note const& first = at(0, 0, 0), &other = at(to, 0, 0); !other.same_call(first))
      return nccl_disagreement{
          to, 0,
          sentence("it called ", other.what().words(), ", call ", other.number + 1, ", and rank 0 of the group ",
                   first.what().words(), ", call ", first.number + 1)};
  for (int from = 0; from < size; ++from)
    for (int to = 0; to < size; ++to)
      if (nccl_note const& out = at(from, 0, to), &in = at(to, 1, from); !out.same_rows(in))
        return nccl_disagreement{from, to,
                                 sentence("it sends ", out.rows, " rows of ", out.row_width, " bytes where rank ", to,
                                          " of the group expects ", in.rows, " of ", in.row_width)};
  return std::nullopt;
}

/// Whether two pieces of memory of one size have a byte in common.
inline bool overlap(void const* a, void const* b, std::int64_t bytes) {
  auto const x = reinterpret_cast<std::uintptr_t>(a), y = reinterpret_cast<std::uintptr_t>(b);
  return (x < y ? y - x : x - y) < static_cast<std::uintptr_t>(bytes);
}

/// Throws data_error unless the blocks are those of a call that NCCL can make.
inline void check_blocks(rank_operation const& what, int rank, int size, std::span<outgoing_rows const> to,
                         std::span<incoming_rows const> from) {
  char const* const call = what.name;
  auto const ranks = static_cast<std::size_t>(size);
  require<data_error>(to.size() == ranks && from.size() == ranks, call, " needs rows for ", ranks,
                      " ranks, but was given ", to.size(), " to send and ", from.size(), " to receive.");
  for (std::size_t r = 0; r < ranks; ++r)
    require<data_error>((to[r].rows == 0 || to[r].whole()) && (from[r].rows == 0 || from[r].whole()), call,
                        " was given rows for rank ", r,
                        " that are no one piece of memory; mo::nccl moves whole pieces: pack them first.");
  auto const me = static_cast<std::size_t>(rank);
  require<data_error>(to[me].same_size(from[me]), call, " was given ", to[me].rows, " rows of ", to[me].width,
                      " bytes to send to itself where it expects ", from[me].rows, " of ", from[me].width, '.');
  if (!what.equal) return;
  auto const in_place = [&](auto const& rows, std::size_t r) {
    return rows[r].bytes() == what.width && rows[r].data == rows[0].data + static_cast<std::int64_t>(r) * what.width;
  };
  for (std::size_t r = 0; r < ranks; ++r)
    require<data_error>(in_place(to, r) && in_place(from, r), call, " was to exchange blocks of ", what.width,
                        " bytes that lie side by side, which those for rank ", r, " do not.");
}

/// Messages as NCCL, which knows no channels, must be given them: each channel's after those of lower ones.
template <class Message> std::vector<Message> by_channel(std::span<Message const> messages, int size) {
  std::vector<Message> all(messages.begin(), messages.end());
  for (Message const& m : all)
    require<data_error>(m.peer >= 0 && m.peer < size, "send_recv was given rank ", m.peer, " of ", size, " ranks.");
  std::stable_sort(all.begin(), all.end(), [](Message const& a, Message const& b) { return a.channel < b.channel; });
  return all;
}

/// What a rank asks of a split.
struct nccl_choice {
  int colour, key, rank, world_rank;
};
/// A part by a split: its colour for NCCL, which are not negative; this rank's place in it; its ranks.
struct nccl_part {
  int colour, place;
  std::vector<int> world_ranks;
};

/// The part of those who chose as `mine` did, of the choices of all by rank.
inline nccl_part part_of(std::vector<nccl_choice> all, nccl_choice const& mine) {
  std::erase_if(all, [&](nccl_choice const& c) { return c.colour != mine.colour; });
  nccl_part part{all[0].rank, 0, {}};
  std::stable_sort(all.begin(), all.end(), [](nccl_choice const& a, nccl_choice const& b) { return a.key < b.key; });
  for (nccl_choice const& c : all) {
    if (c.rank == mine.rank) part.place = static_cast<int>(part.world_ranks.size());
    part.world_ranks.push_back(c.world_rank);
  }
  return part;
}

/// The ranks that leave a group, in order and each once.
inline std::vector<int> leaving_ranks(std::span<int const> without, int rank, int size) {
  std::vector<int> gone(without.begin(), without.end());
  std::sort(gone.begin(), gone.end());
  gone.erase(std::unique(gone.begin(), gone.end()), gone.end());
  require<data_error>(
      !gone.empty() && gone.front() >= 0 && gone.back() < size && !std::binary_search(gone.begin(), gone.end(), rank),
      "shrink needs other ranks of the group to leave out, one at least.");
  return gone;
}

}  // namespace detail

}  // namespace moiety
