// SPDX-License-Identifier: Apache-2.0
// Rows that travel straight between two ranks: from those whose tokens they belong to, to those that hold their experts, and
// back. Made once in forward; a tape keeps it.
//
//   bring       rows by permutation here → rows by local expert there, see dispatcher/arrived_rows.hpp
//   give_back   the transpose: rows by local expert → rows by permutation, to the ranks that they came from; what the
//               copies of an expert return for one row is added, in the order of ranks
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/kernel_list.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/dispatcher/arrived_rows.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

namespace moiety::inline MOIETY_ABI {

class row_exchange : public arrived_rows {
 public:
  /// What it speaks through.
  template <communicator C> struct links {
    explicit links(C& of) : group(&of) {}
    C* group;
  };

  template <communicator C>
  row_exchange(links<C>& through, permutation_view const& order, std::int64_t experts, int copies, arena& memory)
      : arrived_rows(*through.group, order, experts, copies, memory), places_(memory), firsts_(&memory.for_lists()) {
    places_.values.reserve(static_cast<std::size_t>(rows()));
    for (int r = 0; r < through.group->size(); ++r) {
      firsts_.push_back(static_cast<std::int64_t>(places_.values.size()));
      list_places(r, places_.values);
    }
    places_.publish();
  }

  /// Rows of `width` values, in `room`; they need not be copied one by one.
  template <communicator C, class V>
  kernels::rows_of<V> bring(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, buffer& room,
                            std::pmr::memory_resource& memory) const {
    return in_room<V>(width, room, memory, [&](V* to) { bring_to(through, from, width, to); });
  }

  /// to [rows() × width].
  template <communicator C, class V>
  void bring_to(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, V* to) const {
    through.group->finish(start_bring(through, from, width, to, all()));
  }

  /// from [rows() × width] → to [own_rows() × width].
  template <communicator C, class V>
  void give_back(links<C>& through, V const* from, std::int64_t width, V* to, std::pmr::memory_resource& memory) const {
    buffer const others = room_of_copies<V>(width, memory);
    through.group->finish(start_give_back(through, from, width, to, others, all()));
    add_copies(through, others, width, to);
  }

  // The halves of both for some of the experts of each rank, so that exchanges and experts can overlap. What copies return
  // lies apart until it is added.

  template <communicator C, class V>
  auto start_bring(links<C>& through, kernels::rows_of<V> const& from, std::int64_t width, V* to,
                   range_of const& part) const {
    std::vector<outgoing_rows> out;
    std::vector<incoming_rows> in;
    for (int r = 0; r < through.group->size(); ++r) {
      out.push_back(detail::rows_from(from.data, from.stride, from.index, sent(r, part), width));
      in.push_back(detail::rows_to(to, places_.for_kernels(), listed(r, part), width));
    }
    return through.group->start({.name = "dispatch", .width = detail::row_bytes<V>(width)}, out, in);
  }

  template <communicator C, class V>
  auto start_give_back(links<C>& through, V const* from, std::int64_t width, V* to, buffer const& others,
                       range_of const& part) const {
    auto* const parts = static_cast<V*>(others.data());
    std::vector<outgoing_rows> out;
    std::vector<incoming_rows> in;
    for (int r = 0; r < through.group->size(); ++r) {
      int const copy = r % copies();
      V* const room = copy == 0 ? to : parts + (copy - 1) * own_rows() * width;
      out.push_back(detail::rows_from(from, width, places_.for_kernels(), listed(r, part), width));
      in.push_back(detail::rows_to(room, nullptr, sent(r, part), width));
    }
    return through.group->start({.name = "combine", .width = detail::row_bytes<V>(width)}, out, in);
  }

  template <class V> buffer room_of_copies(std::int64_t width, std::pmr::memory_resource& memory) const {
    return buffer((copies() - 1) * own_rows() * detail::row_bytes<V>(width), memory);
  }
  template <communicator C, class V>
  void add_copies(links<C>& through, buffer const& others, std::int64_t width, V* to) const {
    std::int64_t const values = own_rows() * width;
    auto const* part = static_cast<V const*>(others.data());
    for (int copy = 1; copy < copies(); ++copy, part += values)
      detail::call_kernel(*through.group, [&](auto&... engine) { detail::add_values(engine..., part, values, to); });
  }

 private:
  /// Where the places of rows that come from a rank for some experts are listed.
  range_of listed(int rank, range_of const& part) const {
    return {firsts_[static_cast<std::size_t>(rank)] + from(rank, {0, part.first}), from(rank, part)};
  }

  kernel_list<std::int32_t> places_;       // of the rows that come, by sender
  std::pmr::vector<std::int64_t> firsts_;  // of each sender, among them
};

}  // namespace moiety
