// SPDX-License-Identifier: Apache-2.0
// The rows that the experts of this rank get from all ranks of a group: how many of each, and where each rank's begin.
//
//   rows are by local expert; those of one expert by sender, in the order in which the sender has them: with tokens in the
//   order of ranks, the order that one rank with all tokens has
//
// The ranks of the group hold the experts in equal, contiguous shares; where `copies` ranks hold one share together (expert
// tensor parallelism), those are neighbours. The counts are agreed on by a collective, once in each forward; where kernels of
// a device have counted the rows of this rank, it waits for them.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/backend/kernel_list.hpp>
#include <moiety/backend/transport/communicator.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <numeric>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

template <class V> std::int64_t row_bytes(std::int64_t width) { return width * static_cast<std::int64_t>(sizeof(V)); }

}  // namespace detail

/// What kernels are told of the rows that the experts of a rank have.
class arrivals {
 public:
  arrivals(arrivals const&) = delete;
  arrivals& operator=(arrivals const&) = delete;
  virtual ~arrivals() = default;

  /// Experts of this rank, where the rows of each begin, for kernels, and the rows of all; where offsets on a device alone
  /// know that, as many as there may be.
  std::int64_t experts() const { return experts_; }
  std::int64_t const* offsets() const { return offsets_; }
  std::int64_t rows() const { return rows_; }
  /// The rows that an exchange left in a room, of rows that are tokens.
  template <class V> kernels::rows_of<V> brought(buffer const& room, std::int64_t width) const {
    return {static_cast<V const*>(room.data()), width};
  }

 protected:
  explicit arrivals(std::int64_t experts) : experts_(experts) {}
  void arrive(std::int64_t rows, std::int64_t const* offsets) { rows_ = rows, offsets_ = offsets; }

  /// Rows of `width` values in a room, where bring_to(room) brings them.
  template <class V, class BringTo>
  kernels::rows_of<V> in_room(std::int64_t width, buffer& room, std::pmr::memory_resource& memory,
                              BringTo const& bring_to) const {
    room = buffer(rows() * detail::row_bytes<V>(width), memory);
    auto* const to = static_cast<V*>(room.data());
    bring_to(to);
    return {to, width};
  }

 private:
  std::int64_t experts_, rows_ = 0;
  std::int64_t const* offsets_ = nullptr;
};

class arrived_rows : public arrivals {
 public:
  template <communicator C>
  arrived_rows(C& group, permutation_view const& order, std::int64_t experts, int copies, arena& memory)
      : arrivals(experts * copies / group.size()),
        arrived_(static_cast<std::size_t>(group.size() * this->experts()), &memory.for_lists()),
        begins_(arrived_.size(), &memory.for_lists()),
        offsets_(memory, static_cast<std::size_t>(this->experts() + 1)),
        copies_(copies),
        starts_(static_cast<std::size_t>(experts + 1), &memory.for_lists()) {
    memory.load(starts_.data(), order.starts, static_cast<std::int64_t>(starts_.size() * sizeof(std::int64_t)));
    std::pmr::vector<std::int64_t> asked(arrived_.size(), &memory.for_lists());
    for (int r = 0; r < group.size(); ++r)
      for (std::int64_t e = 0; e < this->experts(); ++e) asked[at(r, e)] = sent(r, {e, 1}).count;
    group.template all_to_all<std::int64_t>(asked, arrived_);
    count(group);
  }

  /// What rows() is at most, which is known before they come.
  std::int64_t most_rows() const { return rows(); }
  /// Rows of this rank's permutation that travel: those of experts that have an MLP.
  std::int64_t own_rows() const { return starts_.back(); }
  using arrivals::offsets;
  /// Offsets of a call of some of these experts: others have no row.
  std::vector<std::int64_t> offsets(range_of const& part) const {
    auto const& whole = offsets_.values;
    std::vector<std::int64_t> some(whole.begin(), whole.end());
    for (std::int64_t& offset : some)
      offset = std::clamp(offset, whole[static_cast<std::size_t>(part.first)],
                          whole[static_cast<std::size_t>(part.first + part.count)]);
    return some;
  }

 protected:
  std::size_t at(std::int64_t rank, std::int64_t expert) const {
    return static_cast<std::size_t>(rank * experts() + expert);
  }
  int copies() const { return copies_; }
  range_of all() const { return {0, experts()}; }
  /// Rows by permutation that go to some experts of a rank.
  range_of sent(int rank, range_of const& part) const {
    auto const first = starts_.begin() + rank / copies_ * experts() + part.first;
    return {*first, first[part.count] - *first};
  }
  range_of sent(int rank) const { return sent(rank, all()); }
  /// Rows that come from a rank for some experts here.
  std::int64_t from(int rank, range_of const& part) const {
    auto const first = arrived_.begin() + rank * experts() + part.first;
    return std::accumulate(first, first + part.count, std::int64_t{0});
  }
  std::int64_t from(int rank) const { return from(rank, all()); }
  /// Where the rows that come from a rank for an expert here begin; they lie together.
  range_of place(int rank, std::int64_t expert) const {
    return {begins_[at(rank, expert)], arrived_[at(rank, expert)]};
  }
  /// Appends the places of the rows that come from a rank, in the order in which it has them.
  void list_places(int rank, std::pmr::vector<std::int32_t>& places) const {
    for (std::int64_t e = 0; e < experts(); ++e)
      for (std::int64_t i = 0; i < arrived_[at(rank, e)]; ++i)
        places.push_back(static_cast<std::int32_t>(begins_[at(rank, e)] + i));
  }

 private:
  /// Once it is known what comes.
  template <communicator C> void count(C& group) {
    for (std::int64_t const n : arrived_)
      if (n < 0 || n > std::numeric_limits<std::int32_t>::max())
        group.fail(comm_fault::mismatch, "all_to_all", detail::sentence("a rank announced ", n, " rows of an expert"));
    std::int64_t all = 0;
    for (std::int64_t e = 0; e < experts(); ++e) {
      offsets_.values[static_cast<std::size_t>(e)] = all;
      for (int r = 0; r < group.size(); all += arrived_[at(r++, e)]) begins_[at(r, e)] = all;
    }
    offsets_.values.back() = all;
    offsets_.publish();
    arrive(all, offsets_.for_kernels());
    detail::require<resource_error>(all <= std::numeric_limits<std::int32_t>::max(), "the experts of a rank got ", all,
                                    " rows, which do not fit a row index of 32 bits.");
  }

  std::pmr::vector<std::int64_t> arrived_, begins_;  // by sender and expert: rows, and the place of the first
  kernel_list<std::int64_t> offsets_;
  int copies_;
  std::pmr::vector<std::int64_t> starts_;  // of this rank's permutation
};

namespace detail {

/// Rows from `first` on of rows that may lie anywhere.
template <class V>
outgoing_rows rows_from(V const* data, std::int64_t stride, std::int32_t const* index, range_of const& part,
                        std::int64_t width) {
  V const* const base = index == nullptr ? data + part.first * stride : data;
  return {reinterpret_cast<std::byte const*>(base), part.count, row_bytes<V>(width), row_bytes<V>(stride),
          index == nullptr ? nullptr : index + part.first};
}
template <class V> incoming_rows rows_to(V* data, std::int32_t const* index, range_of const& part, std::int64_t width) {
  V* const base = index == nullptr ? data + part.first * width : data;
  return {reinterpret_cast<std::byte*>(base), part.count, row_bytes<V>(width), row_bytes<V>(width),
          index == nullptr ? nullptr : index + part.first};
}

}  // namespace detail

}  // namespace moiety
