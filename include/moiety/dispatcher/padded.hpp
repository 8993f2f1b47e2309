// SPDX-License-Identifier: Apache-2.0
// The dispatcher of layers with a capacity whose messages have one size, known beforehand: every pair of ranks exchanges
// equal blocks, and nobody waits for counts before rows can leave. On a device the host never learns them: kernels pack, count
// and unpack, and work on as many rows as may come.
//
//   using dispatcher = mo::padded_all_to_all<4096>;      a rank calls the layer with at most 4096 tokens: any number, none too
//   using dispatcher = mo::padded_all_to_all<512, 8>;    with at most 8 sequences, or parts of them, of at most 512 tokens
//
//   a block = [how many rows each expert of the receiver gets | share · P rows]      share experts on a rank, P rows for each;
//                                                                                    see kernels/rank_blocks.hpp
//
// What is known without a word between ranks is these numbers, the capacity of the spec, and how many ranks there are:
//
//   per::sequence        P = sequences · min(tokens, C(parts · tokens)), with parts = the ranks that share a sequence
//                        of 1 the padding is C's; of more, one rank may fill an expert alone
//   per::global_batch    P = min(N, C(ranks · N)), with N = tokens · sequences
//                        one rank may fill an expert alone, so blocks are up to `ranks` times what they carry
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
#include <moiety/kernels/rank_blocks.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI {

/// How many rows an expert gets at most.
struct row_limits {
  std::int64_t from_rank, from_all;
};

class padded_exchange : public arrivals {
 public:
  template <communicator C> using links = row_exchange::links<C>;

  template <communicator C>
  padded_exchange(links<C>& through, permutation_view const& order, std::int64_t experts, int copies, arena& memory,
                  row_limits const& limits)
      : arrivals(experts * copies / through.group->size()),
        limits_(limits),
        ranks_(through.group->size()),
        copies_(copies),
        memory_(&memory),
        sent_(list_bytes(), memory),
        arrived_(list_bytes(), memory),
        begins_((this->experts() + 1) * static_cast<std::int64_t>(sizeof(std::int64_t)), memory) {
    detail::require<resource_error>(most_rows() <= std::numeric_limits<std::int32_t>::max(),
                                    "the experts of a rank may get ", most_rows(),
                                    " rows, which do not fit a row index of 32 bits.");
    arrive(memory.of_host() ? 0 : most_rows(), begins());
    std::int64_t excess = 0;
    detail::call_kernel(*through.group, [&](auto&... engine) {
      excess = kernels::list_sent(engine..., blocks_of<char>(0), copies, order.starts, sent());
    });
    detail::require<data_error>(excess == 0, "an expert was given ", excess, " rows, where blocks have room for ",
                                limits.from_rank, '.');
  }

  /// What rows() is at most, which is known before they come.
  std::int64_t most_rows() const { return experts() * limits_.from_all; }

  template <communicator C, class V>
  kernels::rows_of<V> bring(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, buffer& room,
                            std::pmr::memory_resource& memory) {
    buffer const came = exchange_rows(through, from, width, memory);
    return in_room<V>(width, room, memory, [&](V* to) { unpack(*through.group, came, width, arrived(), 1, to); });
  }

  /// to [most_rows() × width], of which those that come are written.
  template <communicator C, class V>
  void bring_to(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, V* to) {
    unpack(*through.group, exchange_rows(through, from, width, *memory_), width, arrived(), 1, to);
  }

  /// from [rows() × width] → to, by row of the permutation.
  template <communicator C, class V>
  void give_back(links<C>& through, V const* from, std::int64_t width, V* to, std::pmr::memory_resource& memory) const {
    buffer const came = exchange(*through.group, "combine", kernels::rows_of<V>{from, width}, width, arrived(), memory);
    unpack(*through.group, came, width, sent(), copies_, to);
  }

 private:
  template <class V> using blocks = kernels::rank_blocks<V>;

  std::int64_t list_bytes() const { return ranks_ * experts() * static_cast<std::int64_t>(sizeof(range_of)); }
  range_of* sent() const { return static_cast<range_of*>(sent_.data()); }
  range_of* arrived() const { return static_cast<range_of*>(arrived_.data()); }
  std::int64_t* begins() const { return static_cast<std::int64_t*>(begins_.data()); }
  template <class V> blocks<V> blocks_of(std::int64_t width) const {
    return {ranks_, experts(), limits_.from_rank, width};
  }
  static std::byte* in(buffer const& memory) { return static_cast<std::byte*>(memory.data()); }

  /// Packs rows by parts into blocks, and exchanges them.
  template <class C, class V>
  buffer exchange(C& group, char const* name, kernels::rows_of<V> const& from, std::int64_t width,
                  range_of const* parts, std::pmr::memory_resource& memory) const {
    blocks<V> const shape = blocks_of<V>(width);
    std::int64_t const bytes = shape.block_bytes();
    buffer out(shape.bytes(), memory), came(shape.bytes(), memory);
    detail::call_kernel(group, [&](auto&... engine) { kernels::pack(engine..., shape, from, parts, in(out)); });
    std::vector<outgoing_rows> to;
    std::vector<incoming_rows> back;
    for (std::int64_t r = 0; r < ranks_; ++r) {
      to.push_back({in(out) + r * bytes, 1, bytes, bytes, nullptr});
      back.push_back({in(came) + r * bytes, 1, bytes, bytes, nullptr});
    }
    group.finish(group.start({.name = name, .width = bytes, .equal = true}, to, back));
    return came;
  }

  /// The blocks of all ranks, of rows by permutation. The first ones tell how many rows come.
  template <communicator C, class V>
  buffer exchange_rows(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width,
                       std::pmr::memory_resource& memory) {
    C& group = *through.group;
    buffer came = exchange(group, "dispatch", from, width, sent(), memory);
    if (settled_) return came;
    std::int64_t excess = 0;
    detail::call_kernel(group, [&](auto&... engine) {
      excess = kernels::list_arrived(engine..., blocks_of<V>(width), in(came), arrived(), begins());
    });
    if (excess != 0)
      group.fail(comm_fault::mismatch, "dispatch", detail::sentence("a rank announced ", excess, " rows of an expert"));
    if (memory_->of_host()) arrive(begins()[experts()], begins());
    settled_ = true;
    return came;
  }

  template <class C, class V>
  void unpack(C& group, buffer const& came, std::int64_t width, range_of const* parts, int copies, V* to) const {
    detail::call_kernel(
        group, [&](auto&... engine) { kernels::unpack(engine..., blocks_of<V>(width), in(came), parts, copies, to); });
  }

  row_limits limits_;
  std::int64_t ranks_;
  int copies_;
  arena* memory_;
  buffer sent_, arrived_, begins_;  // parts of both sides, and offsets, in memory of kernels
  bool settled_ = false;
};

template <std::int64_t Tokens, std::int64_t Sequences = 1> struct padded_all_to_all {
  static_assert(Tokens > 0 && Sequences > 0,
                "mo::padded_all_to_all needs room for at least 1 token and 1 sequence of a rank.");
  static constexpr std::string_view name = "padded_all_to_all";
  static constexpr bool travels = true, keeps_rows = false, on_devices = true;
  static constexpr int chunks = 1;
  static constexpr std::int64_t most_tokens = Tokens * Sequences;
  using exchange = padded_exchange;

  /// Of a layer whose stage has `stage` ranks, of which `group` share the experts and `parts` a sequence.
  template <class Capacity>
  static constexpr row_limits limits(std::int64_t slots, std::int64_t experts, std::int64_t stage, std::int64_t group,
                                     std::int64_t parts) {
    if (Capacity::by_sequence) {
      std::int64_t const whole = Capacity::of(parts * Tokens, slots, experts);
      std::int64_t const own = Sequences * std::min(Tokens, whole);
      return {own, std::min(group * own, stage / parts * Sequences * whole)};
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
