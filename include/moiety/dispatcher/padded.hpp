// SPDX-License-Identifier: Apache-2.0
// The dispatcher of layers with a capacity whose messages have one size, known beforehand: every pair of ranks exchanges
// equal blocks by all_to_all, and nobody waits for counts, nor reads them on a device's behalf, before rows can leave.
//
//   using dispatcher = mo::padded_all_to_all<4096>;      a rank calls the layer with at most 4096 tokens: any number, none too
//   using dispatcher = mo::padded_all_to_all<512, 8>;    with at most 8 sequences of at most 512 tokens
//
//   a block = [how many rows each expert of the receiver gets | share · P rows]      share experts on a rank, P rows for each
//
// What is known without a word between ranks is these numbers, the capacity of the spec, and how many ranks there are:
//
//   per::sequence        P = sequences · C(tokens)                a rank's own drops bound its rows; the padding is C's
//   per::global_batch    P = min(N, C(ranks · N))                 N = tokens · sequences; one rank may fill an expert alone, so
//                                                                 blocks are up to `ranks` times what they carry
//
// More tokens, sequences or longer ones than that are a data_error on every rank. Rows beyond those that a rank has are zeros,
// which are not unpacked: they reach no product, and every bit is that of mo::all_to_all. Tapes have room for as many rows as
// may come; a message has room twice, 2 · ranks · share · P · H values, while it is under way.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/dispatcher/arrived_rows.hpp>
#include <moiety/dispatcher/row_exchange.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <span>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// How many rows an expert gets at most.
struct row_limits {
  std::int64_t from_rank, from_all;
};

class padded_exchange : public arrived_rows {
 public:
  template <communicator C> using links = row_exchange::links<C>;

  template <communicator C>
  padded_exchange(links<C>& through, permutation_view const& order, std::int64_t experts, int copies, arena& memory,
                  row_limits const& limits)
      : arrived_rows(through.group->size(), order, experts, copies, memory), limits_(limits), memory_(&memory) {
    for (std::int64_t e = 0; e < experts; ++e)
      detail::require<data_error>(order.starts[e + 1] - order.starts[e] <= limits.from_rank, "expert ", e,
                                  " was given ", order.starts[e + 1] - order.starts[e],
                                  " rows, where blocks have room for ", limits.from_rank, '.');
  }

  std::int64_t most_rows() const { return experts() * limits_.from_all; }

  template <communicator C, class V>
  kernels::rows_of<V> bring(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, buffer& room,
                            std::pmr::memory_resource& memory) {
    buffer const came = exchange_rows(through, from, width, memory);
    return in_room<V>(width, room, memory, [&](V* to) { unpack(came, through.group->size(), width, to); });
  }

  /// to [most_rows() × width], of which the first rows() are written.
  template <communicator C, class V>
  void bring_to(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, V* to) {
    unpack(exchange_rows(through, from, width, *memory_), through.group->size(), width, to);
  }

  /// from [rows() × width] → to [own_rows() × width].
  template <communicator C, class V>
  void give_back(links<C>& through, V const* from, std::int64_t width, V* to, std::pmr::memory_resource& memory) const {
    buffer const came = exchange<V>(*through.group, width, memory, [&](int r, std::int64_t e) {
      return detail::rows_from(from, width, nullptr, place(r, e), width);
    });
    for (int r = 0; r < through.group->size(); ++r)
      for (std::int64_t e = 0; e < experts(); ++e) {
        range_of const part = sent(r, {e, 1});
        V const* const rows = rows_in<V>(came, r, e, width);
        V* const place = to + part.first * width;
        if (r % copies() == 0)
          std::copy_n(rows, part.count * width, place);
        else
          for (std::int64_t i = 0; i < part.count * width; ++i) place[i] = static_cast<V>(place[i] + rows[i]);
      }
  }

 private:
  std::int64_t head_bytes() const {
    constexpr std::int64_t line = 64;
    return (experts() * static_cast<std::int64_t>(sizeof(std::int64_t)) + line - 1) / line * line;
  }
  template <class V> std::int64_t block_bytes(std::int64_t width) const {
    return head_bytes() + experts() * limits_.from_rank * detail::row_bytes<V>(width);
  }
  /// The rows of an expert in the block of a rank.
  template <class V> V* rows_in(buffer const& blocks, int rank, std::int64_t expert, std::int64_t width) const {
    return reinterpret_cast<V*>(static_cast<std::byte*>(blocks.data()) + rank * block_bytes<V>(width) + head_bytes()) +
           expert * limits_.from_rank * width;
  }

  /// Packs rows_for(rank, expert) into blocks, and exchanges them.
  template <class V, class C, class RowsFor>
  buffer exchange(C& group, std::int64_t width, std::pmr::memory_resource& memory, RowsFor const& rows_for) const {
    std::int64_t const bytes = block_bytes<V>(width), all = bytes * group.size();
    buffer out(all, memory), in(all, memory);
    for (int r = 0; r < group.size(); ++r) {
      auto* const head = static_cast<std::byte*>(out.data()) + r * bytes;
      std::memset(head, 0, static_cast<std::size_t>(head_bytes()));
      list_sent(r, reinterpret_cast<std::int64_t*>(head));
      for (std::int64_t e = 0; e < experts(); ++e) {
        outgoing_rows const rows = rows_for(r, e);
        V* const to = rows_in<V>(out, r, e, width);
        detail::copy_rows(rows, detail::rows_to(to, nullptr, {0, rows.rows}, width));
        std::fill(to + rows.rows * width, to + limits_.from_rank * width, V{});
      }
    }
    group.template all_to_all<std::byte>(bytes_of(out, all), bytes_of(in, all));
    return in;
  }
  static std::span<std::byte> bytes_of(buffer const& block, std::int64_t bytes) {
    return {static_cast<std::byte*>(block.data()), static_cast<std::size_t>(bytes)};
  }

  /// The blocks of all ranks, of rows by permutation. The first ones tell how many rows come.
  template <communicator C, class V>
  buffer exchange_rows(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width,
                       std::pmr::memory_resource& memory) {
    buffer blocks = exchange<V>(*through.group, width, memory, [&](int r, std::int64_t e) {
      return detail::rows_from(from.data, from.stride, from.index, sent(r, {e, 1}), width);
    });
    if (settled_) return blocks;
    for (int r = 0; r < through.group->size(); ++r)
      std::memcpy(arrived_from(r), static_cast<std::byte*>(blocks.data()) + r * block_bytes<V>(width),
                  static_cast<std::size_t>(experts()) * sizeof(std::int64_t));
    settle(*through.group, limits_.from_rank);
    settled_ = true;
    return blocks;
  }

  template <class V> void unpack(buffer const& blocks, int ranks, std::int64_t width, V* to) const {
    for (int r = 0; r < ranks; ++r)
      for (std::int64_t e = 0; e < experts(); ++e) {
        range_of const part = place(r, e);
        std::copy_n(rows_in<V>(blocks, r, e, width), part.count * width, to + part.first * width);
      }
  }

  row_limits limits_;
  std::pmr::memory_resource* memory_;
  bool settled_ = false;
};

template <std::int64_t Tokens, std::int64_t Sequences = 1> struct padded_all_to_all {
  static_assert(Tokens > 0 && Sequences > 0,
                "mo::padded_all_to_all needs room for at least 1 token and 1 sequence of a rank.");
  static constexpr std::string_view name = "padded_all_to_all";
  static constexpr bool travels = true, keeps_rows = false;
  static constexpr int chunks = 1;
  static constexpr std::int64_t most_tokens = Tokens * Sequences;
  using exchange = padded_exchange;

  /// Of a layer whose stage has `stage` ranks, of which `group` share the experts.
  template <class Capacity>
  static constexpr row_limits limits(std::int64_t slots, std::int64_t experts, std::int64_t stage, std::int64_t group) {
    if (Capacity::by_sequence) {
      std::int64_t const own = Sequences * Capacity::of(Tokens, slots, experts);
      return {own, group * own};
    }
    std::int64_t const all = Capacity::of(stage * most_tokens, slots, experts);
    return {std::min(most_tokens, all), all};
  }

  /// Throws data_error where a call has more than it says here.
  template <class Capacity> static void check(std::int64_t tokens, batch const& about) {
    fits(tokens, "tokens", most_tokens);
    if (!Capacity::by_sequence) return;
    fits(about.units(), "sequences", Sequences);
    for (std::size_t s = 1; s < about.sequences.size(); ++s)
      fits(about.sequences[s] - about.sequences[s - 1], "tokens in a sequence", Tokens);
    if (about.sequences.empty()) fits(tokens, "tokens in a sequence", Tokens);
  }

 private:
  static void fits(std::int64_t count, char const* what, std::int64_t most) {
    detail::require<data_error>(count <= most, "a rank of mo::padded_all_to_all was given ", count, ' ', what,
                                ", and has room for ", most, '.');
  }
};

}  // namespace moiety
