// SPDX-License-Identifier: Apache-2.0
// The dispatcher that sends every token to every rank once, where others send a row for each of its experts: less to send if
// a token has more experts than there are ranks. Experts read rows from among all tokens of the group, T' · H values; what
// they give travels back row by row, so that a token's sum keeps its order.
//
//   using dispatcher = mo::all_gather_tokens;
//
// Where a token has more experts than there are ranks, sums of its rows on each rank, added by a reduce_scatter, would be
// less to send than the rows. They are another sum, though: with w o₀ and w o₂ on rank 0, (w o₀ + w o₂) + w o₁ in place of
// (w o₀ + w o₁) + w o₂, so the bits of y and dx would change with the layout, which mo::numerics::invariant does not allow. The
// order of slots needs each row by itself where the sum is made.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/dispatcher/row_exchange.hpp>
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
        tokens_(static_cast<std::size_t>(through.group->size()), &memory),
        sources_(static_cast<std::size_t>(rows()), &memory) {
    through.group->template all_gather<std::int64_t>({&order.tokens, 1}, tokens_);
    std::int64_t before = 0, all = 0;
    for (int r = 0; r < through.group->size(); all += tokens_[static_cast<std::size_t>(r++)])
      if (r == through.group->rank()) before = all;
    detail::require<resource_error>(all <= std::numeric_limits<std::int32_t>::max(), "the ranks of a group have ", all,
                                    " tokens, which do not fit a row index of 32 bits.");
    std::pmr::vector<std::int32_t> own(order.source_tokens, order.source_tokens + own_rows(), &memory);
    for (std::int32_t& token : own) token += static_cast<std::int32_t>(before);
    bring_to(through, kernels::rows_of<std::int32_t>{own.data(), 1}, 1, sources_.data());
  }

  /// Rows that are tokens have an index, and come as tokens; others come as they are.
  template <communicator C, class V>
  kernels::rows_of<V> bring(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, buffer& room,
                            std::pmr::memory_resource& memory) const {
    if (from.index == nullptr) return row_exchange::bring(through, from, width, room, memory);
    std::int64_t all = 0;
    for (std::int64_t const n : tokens_) all += n;
    room = buffer(all * detail::row_bytes<V>(width), memory);
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
    return {to, width, sources_.data()};
  }

  template <class V> kernels::rows_of<V> brought(buffer const& room, std::int64_t width) const {
    return {static_cast<V const*>(room.data()), width, sources_.data()};
  }

 private:
  std::pmr::vector<std::int64_t> tokens_;   // of each rank
  std::pmr::vector<std::int32_t> sources_;  // the token of each row here, among those of all ranks
};

struct all_gather_tokens {
  static constexpr std::string_view name = "all_gather_tokens";
  static constexpr bool travels = true, keeps_rows = false;
  static constexpr int chunks = 1;
  using exchange = token_exchange;
};

}  // namespace moiety
