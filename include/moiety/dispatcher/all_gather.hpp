// SPDX-License-Identifier: Apache-2.0
// The dispatcher that sends every token to every rank once, where others send a row for each of its experts: less to send if
// a token has more experts than there are ranks. Experts read rows from among all tokens of the group, T' · H values.
//
//   using dispatcher = mo::all_gather_tokens;
//
// How results come home, and in the input half the gradients of tokens, is said by the numerics of the deployment:
//
//   mo::numerics::invariant   row by row: a token's sum has the order of its slots, (w o₀ + w o₁) + w o₂
//   mo::numerics::fastest     as sums: each rank adds what its own experts give a token, in their order and in the sum type, for
//                             all tokens of the group, and one reduce_scatter adds the ranks' parts. With o₀ and o₂ on rank 0
//                             that is (w o₀ + w o₂) + w o₁: the bits of y and dx are those of the layout, and those of gradients
//                             of weights stay. Row by row, too, for routers with mo::on_input, which need the gradients of
//                             rows, and for ranks of mo::cuda
//
// What a rank with T of the T' tokens sends to R − 1 others, in bytes; elements have s, their sums S:
//
//                                                                     invariant           fastest
//   tokens: forward x, the input half dy, the weight half x again     (R − 1) · T · H · s the same
//   forward results, the input half dx                                N · H · s           (T' − T) · H · S
//   forward weights, where they multiply results                      –                   M · S
//
// N of the rows here are of tokens of other ranks, and M rows of the tokens here are on other ranks: both (R − 1)/R · k · T if k
// experts a token are spread evenly over equal ranks. So sums are less where k · s > R · S: with more experts a token than ranks
// in float and double, than twice the ranks in 16 bits. A library below the transport may send its sums another way.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/kernel_list.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/dispatcher/arrived_rows.hpp>
#include <moiety/dispatcher/row_exchange.hpp>
#include <moiety/kernels/combine.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class token_exchange : public row_exchange {
 public:
  template <communicator C>
  token_exchange(links<C>& through, permutation_view const& order, std::int64_t experts, int copies, arena& memory)
      : row_exchange(through, order, experts, copies, memory),
        tokens_(static_cast<std::size_t>(through.group->size()), &memory.for_lists()),
        sources_(rows() * detail::row_bytes<std::int32_t>(1), memory) {
    through.group->template all_gather<std::int64_t>({&order.tokens, 1}, tokens_);
    for (int r = 0; r < through.group->size(); all_ += tokens_[static_cast<std::size_t>(r++)])
      if (r == through.group->rank()) before_ = all_;
    detail::require<resource_error>(all_ <= std::numeric_limits<std::int32_t>::max(), "the ranks of a group have ",
                                    all_, " tokens, which do not fit a row index of 32 bits.");
    kernel_list<std::int32_t> own(memory, static_cast<std::size_t>(own_rows()));
    memory.load(own.values.data(), order.source_tokens, own_rows() * detail::row_bytes<std::int32_t>(1));
    for (std::int32_t& token : own.values) token += static_cast<std::int32_t>(before_);
    own.publish();
    bring_to(through, kernels::rows_of<std::int32_t>{own.for_kernels(), 1}, 1, sources());
  }

  /// Rows that are tokens have an index, and come as tokens; others come as they are.
  template <communicator C, class V>
  kernels::rows_of<V> bring(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, buffer& room,
                            std::pmr::memory_resource& memory) const {
    if (from.index == nullptr) return row_exchange::bring(through, from, width, room, memory);
    room = buffer(all_ * detail::row_bytes<V>(width), memory);
    auto* const to = static_cast<V*>(room.data());
    std::int64_t const mine = tokens_[static_cast<std::size_t>(through.group->rank())];
    std::vector<outgoing_rows> const out(tokens_.size(),
                                         detail::rows_from(from.data, from.stride, nullptr, {0, mine}, width));
    std::vector<incoming_rows> in;
    std::int64_t first = 0;
    for (std::int64_t const n : tokens_) {
      in.push_back(detail::rows_to(to, nullptr, {first, n}, width));
      first += n;
    }
    through.group->finish(through.group->start({.name = "dispatch", .width = detail::row_bytes<V>(width)}, out, in));
    return {to, width, sources()};
  }

  template <class V> kernels::rows_of<V> brought(buffer const& room, std::int64_t width) const {
    return {static_cast<V const*>(room.data()), width, sources()};
  }

 protected:
  /// The token of each row here, among those of all ranks.
  std::int32_t* sources() const { return static_cast<std::int32_t*>(sources_.data()); }

  std::pmr::vector<std::int64_t> tokens_;  // of each rank
  std::int64_t before_ = 0, all_ = 0;      // tokens of the ranks before this one, and of all

 private:
  buffer sources_;
};

/// The exchange of mo::numerics::fastest, for ranks of the host.
class token_sums : public token_exchange {
 public:
  template <communicator C>
  token_sums(links<C>& through, permutation_view const& order, std::int64_t experts, int copies, arena& memory)
      : token_exchange(through, order, experts, copies, memory),
        slots_(order.slots),
        places_(static_cast<std::size_t>(all_ * slots_), -1, &memory) {
    for (std::int64_t row = 0; row < rows(); ++row) {
      std::int32_t* place = places_.data() + sources()[row] * slots_;
      while (*place >= 0) ++place;
      *place = static_cast<std::int32_t>(row);
    }
  }

  /// rows [rows() × width] → sums by token of the group, complete for those of this rank. Rows have weights, or 1 where they
  /// are null.
  template <scalar T, class Engine, communicator C>
  buffer sum(Engine& engine, links<C>& through, T const* from, sum_t<T> const* weights, std::int64_t width,
             std::pmr::memory_resource& memory) {
    using S = sum_t<T>;
    buffer sums(all_ * detail::row_bytes<S>(width), memory);
    std::pmr::vector<S> by_slot(weights == nullptr ? 0 : places_.size(), &memory);
    for (std::size_t i = 0; i < by_slot.size(); ++i)
      if (places_[i] >= 0) by_slot[i] = weights[places_[i]];
    permutation_view order{all_, experts(), slots_};
    order.positions = places_.data();
    auto* const to = static_cast<S*>(sums.data());
    kernels::combine_sums<T>(engine, order, {from, rows(), width}, weights == nullptr ? nullptr : by_slot.data(),
                             nullptr, {to, all_, width});
    std::vector<std::int64_t> parts;
    for (std::int64_t const n : tokens_) parts.push_back(n * width);
    through.group->template reduce_scatter_fastest<S>({to, static_cast<std::size_t>(all_ * width)}, parts);
    return sums;
  }

  /// Those of the tokens of this rank.
  template <class S> S* own(buffer const& sums, std::int64_t width) const {
    return static_cast<S*>(sums.data()) + before_ * width;
  }

  /// The rows of slots that did not travel, and −1 for others.
  std::vector<std::int32_t> staying(permutation_view const& order) const {
    std::vector<std::int32_t> rows(order.positions, order.positions + order.tokens * order.slots);
    for (std::int32_t& row : rows)
      if (row < own_rows()) row = -1;
    return rows;
  }

 private:
  std::int64_t slots_;
  std::pmr::vector<std::int32_t>
      places_;  // of the rows of a token here, by token of the group, in the order of experts
};

struct all_gather_tokens {
  static constexpr std::string_view name = "all_gather_tokens";
  static constexpr bool travels = true, keeps_rows = false, on_devices = true;
  static constexpr int chunks = 1;
  using exchange = token_exchange;
  using summing = token_sums;
};

}  // namespace moiety
