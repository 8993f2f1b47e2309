// SPDX-License-Identifier: Apache-2.0
// What every transport's communicator can do for the ranks of one group, 0 … size() − 1.
//
//   mo::self      one rank                                  backend/transport/self.hpp
//   mo::threads   ranks are threads of this process         backend/transport/threads.hpp
//   mo::mpi       ranks are processes                       <moiety/mpi.hpp>
//   mo::nccl      ranks have a CUDA device each             <moiety/nccl.hpp>: rows of device memory, and no sums of one order
//
// All are collectives: every rank of the group calls the same ones in the same order, with the same sizes where sizes are
// said to be common. Elements are of any trivially copyable type; counts are 64-bit. A call has returned when its results are
// there and its arguments may be changed.
//
//   barrier()
//   broadcast(values, root)                       values of rank `root` on every rank
//   all_gather(mine, all)                         all [size × n]: the ranks' mine [n], by rank
//   all_gather_v(mine)                            the same of any n on each rank, as a vector
//   all_to_all(out, in)                           block r of out [size × n] goes to rank r, block r of in came from it
//   all_to_all_v(out, counts, in, counts)         the same of blocks of any size
//   reduce_scatter(values)                        slice rank() of values becomes the ranks' sum; other slices keep theirs
//   reduce_scatter_v(values, counts)              the same of parts of any size, which are the same on every rank
//   all_gather_slices(values)                     slice r of values becomes that of rank r
//   all_reduce(values)                            values become the ranks' sum
//   send_recv(sends, receives)                    messages between pairs of ranks, all in flight together; not a collective
//   start_sends(sends), sent(sending), finish(sending)            of threads and mpi: sends that go on while the rank does something
//                                                 else; their memory stays until sent says true, or finish has returned
//   start(operation, to, from), finish(request)   rows to and from every rank, of any place in memory; the two halves of all above
//   split(colour, key, name)                      the communicator of the ranks with this colour, in order of key, then rank
//
// Sums have one order: ((r₀ + r₁) + r₂) + …, for each element, in the type of the element. Slice r of n values is
// slice_of(n, r, size). For those who ask for mo::numerics::fastest, sums of float, double and std::int64_t in an order that
// the library below chooses (mpi, nccl); self and threads, where nothing is below, have none faster than the fixed one:
//
//   all_reduce_fastest(values)                    as all_reduce, also with the same bits on every rank
//   reduce_scatter_fastest(values, counts)        as reduce_scatter_v
//
// Faults: comm_error, on every rank of the run, within the deadline of the transport; after the first the ranks of the run
// can no longer communicate, and every call throws.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class C>
concept communicator = requires(C& c, rank_operation const& what, std::span<outgoing_rows const> to,
                                std::span<incoming_rows const> from, std::span<outgoing_message const> sends,
                                std::span<incoming_message const> receives) {
  { c.rank() } -> std::convertible_to<int>;
  { c.size() } -> std::convertible_to<int>;
  c.finish(c.start(what, to, from));
  c.send_recv(sends, receives);
  { c.split(0, 0, "axis") } -> std::same_as<C>;
  c.barrier();
};

template <class T>
concept exchangeable = std::is_trivially_copyable_v<T>;

namespace detail {

/// a += b of each element.
struct add_to {
  template <class T> void operator()(T& a, T const& b) const {
    static_assert(
        requires { a += b; }, "sums over ranks are of types with +=; 16-bit types are summed as float.");
    a += b;
  }
};

}  // namespace detail

/// The collectives of a communicator, from its start and finish.
template <class Derived> class collectives {
  Derived& self() { return static_cast<Derived&>(*this); }
  std::size_t ranks() { return static_cast<std::size_t>(self().size()); }

 public:
  void barrier() { exchange<std::byte>({.name = "barrier", .width = 1, .count = 0}, {}, {}); }

  template <exchangeable T> void broadcast(std::span<T> values, int root) {
    detail::require<data_error>(root >= 0 && root < self().size(), "broadcast was given root ", root, " of ",
                                self().size(), " ranks.");
    auto const count = static_cast<std::int64_t>(values.size());
    bool const sends = self().rank() == root;
    std::vector<outgoing_rows> to(ranks());
    std::vector<incoming_rows> from(ranks());
    for (std::size_t r = 0; r < to.size(); ++r) {
      bool const is_root = static_cast<int>(r) == root;
      if (sends && !is_root) to[r] = detail::block_of<std::byte const>(values.data(), count);
      if (!sends && is_root) from[r] = detail::block_of<std::byte>(values.data(), count);
    }
    run({.name = "broadcast", .width = sizeof(T), .count = count, .root = root}, to, from);
  }

  template <exchangeable T> void all_gather(std::span<T const> mine, std::span<T> all) {
    auto const count = static_cast<std::int64_t>(mine.size());
    detail::require<data_error>(all.size() == mine.size() * ranks(), "all_gather was given room for ", all.size(),
                                " values in place of ", mine.size() * ranks(), '.');
    std::vector<outgoing_rows> const to(ranks(), detail::block_of<std::byte const>(mine.data(), count));
    std::vector<incoming_rows> from;
    for (std::size_t r = 0; r < ranks(); ++r)
      from.push_back(detail::block_of<std::byte>(all.data() + r * mine.size(), count));
    run({.name = "all_gather", .width = sizeof(T), .count = count}, to, from);
  }

  template <exchangeable T> std::vector<T> all_gather_v(std::span<T const> mine) {
    std::vector<std::int64_t> counts(ranks());
    auto const count = static_cast<std::int64_t>(mine.size());
    all_gather<std::int64_t>({&count, 1}, counts);
    check_announced(counts, std::numeric_limits<std::ptrdiff_t>::max() / static_cast<std::int64_t>(sizeof(T)));
    std::vector<T> all(static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
    std::vector<outgoing_rows> const to(ranks(), detail::block_of<std::byte const>(mine.data(), count));
    run({.name = "all_gather_v", .width = sizeof(T)}, to, blocks<std::byte>(pieces<T>{all.data(), counts}));
    return all;
  }

  template <exchangeable T> void all_to_all(std::span<T const> out, std::span<T> in) {
    detail::require<data_error>(out.size() == in.size() && out.size() % ranks() == 0, "all_to_all was given ",
                                out.size(), " values to send and room for ", in.size(), " on ", ranks(), " ranks.");
    std::vector<std::int64_t> const counts(ranks(), static_cast<std::int64_t>(out.size() / ranks()));
    exchange<T>({.name = "all_to_all", .width = sizeof(T), .count = counts[0]}, {out.data(), counts},
                {in.data(), counts});
  }

  template <exchangeable T>
  void all_to_all_v(std::span<T const> out, std::span<std::int64_t const> out_counts, std::span<T> in,
                    std::span<std::int64_t const> in_counts) {
    check_counts("all_to_all_v", out.size(), out_counts);
    check_counts("all_to_all_v", in.size(), in_counts);
    exchange<T>({.name = "all_to_all_v", .width = sizeof(T)}, {out.data(), out_counts}, {in.data(), in_counts});
  }

  template <exchangeable T, class Add = detail::add_to> void reduce_scatter(std::span<T> values, Add const& add = {}) {
    sum_part("reduce_scatter", values, slice_counts(static_cast<std::int64_t>(values.size()), self().size()), add);
  }

  template <exchangeable T, class Add = detail::add_to>
  void reduce_scatter_v(std::span<T> values, std::span<std::int64_t const> counts, Add const& add = {}) {
    check_counts("reduce_scatter_v", values.size(), counts);
    sum_part("reduce_scatter_v", values, counts, add);
  }

  template <exchangeable T> void all_gather_slices(std::span<T> values) {
    auto const count = static_cast<std::int64_t>(values.size());
    auto const me = static_cast<std::size_t>(self().rank());
    auto const counts = slice_counts(count, self().size());
    auto from = blocks<std::byte>(pieces<T>{values.data(), counts});
    std::vector<outgoing_rows> to(ranks(), {from[me].data, from[me].rows, from[me].width, from[me].stride, nullptr});
    to[me].rows = from[me].rows = 0;
    run({.name = "all_gather_slices", .width = sizeof(T), .count = count}, to, from);
  }

  template <exchangeable T, class Add = detail::add_to> void all_reduce(std::span<T> values, Add const& add = {}) {
    if (self().size() == 1) return;
    if (values.size_bytes() > few_bytes) {
      reduce_scatter(values, add);
      return all_gather_slices(values);
    }
    auto const all = std::make_unique_for_overwrite<T[]>(values.size() * ranks());
    all_gather<T>(values, {all.get(), values.size() * ranks()});
    sum(all.get(), static_cast<std::int64_t>(values.size()), values.data(), add);
  }

  template <exchangeable T> void all_reduce_fastest(std::span<T> values) { all_reduce(values); }
  template <exchangeable T> void reduce_scatter_fastest(std::span<T> values, std::span<std::int64_t const> counts) {
    reduce_scatter_v(values, counts);
  }

 private:
  /// Blocks one after another, of any number of values each.
  template <class T> struct pieces {
    T* values = nullptr;
    std::span<std::int64_t const> counts{};
  };

  template <class T> void exchange(rank_operation const& what, pieces<T const> const& out, pieces<T> const& in) {
    run(what, blocks<std::byte const>(out), blocks<std::byte>(in));
  }

  void run(rank_operation const& what, std::span<outgoing_rows const> to, std::span<incoming_rows const> from) {
    self().finish(self().start(what, to, from));
  }

  template <class Byte, class T> std::vector<rows_block<Byte>> blocks(pieces<T> const& of) {
    std::vector<rows_block<Byte>> all(ranks());
    T* next = of.values;
    for (std::size_t r = 0; r < of.counts.size(); next += of.counts[r++])
      all[r] = detail::block_of<Byte>(next, of.counts[r]);
    return all;
  }

  /// The part of this rank becomes the ranks' sum.
  template <class T, class Add>
  void sum_part(char const* name, std::span<T> values, std::span<std::int64_t const> counts, Add const& add) {
    auto const mine = counts.begin() + self().rank();
    std::vector<std::int64_t> const in(ranks(), *mine);
    auto const parts = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(*mine) * ranks());
    exchange<T>({.name = name, .width = sizeof(T), .count = static_cast<std::int64_t>(values.size())},
                {values.data(), counts}, {parts.get(), in});
    sum(parts.get(), *mine, values.data() + std::accumulate(counts.begin(), mine, std::int64_t{0}), add);
  }

  /// to[i] = ((p₀ + p₁) + p₂) + … of the parts [size × count].
  template <class T, class Add> void sum(T* parts, std::int64_t count, T* to, Add const& add) {
    for (std::int64_t part = 1; part < self().size(); ++part)
      for (std::int64_t i = 0; i < count; ++i) add(parts[i], parts[part * count + i]);
    std::copy_n(parts, count, to);
  }

  /// What other ranks say they send is checked before memory is asked for.
  void check_announced(std::span<std::int64_t const> counts, std::int64_t most) {
    for (std::size_t r = 0; r < counts.size(); most -= counts[r++])
      if (counts[r] < 0 || counts[r] > most)
        self().fail(comm_fault::mismatch, "all_gather_v",
                    detail::sentence("rank ", r, " of the group announced ", counts[r], " values"));
  }

 protected:
  static constexpr std::size_t few_bytes = 16384;  // below this one round of messages is faster than two

  void check_counts(char const* call, std::size_t size, std::span<std::int64_t const> counts) {
    detail::require<data_error>(counts.size() == ranks(), call, " was given counts of ", counts.size(), " ranks of ",
                                ranks(), '.');
    auto const values = static_cast<std::int64_t>(size);
    std::int64_t left = values;
    for (std::int64_t const n : counts) {
      detail::require<data_error>(n >= 0, call, " was given a negative count.");
      detail::require<data_error>(n <= left, call, " was given counts of more than its ", values, " values.");
      left -= n;
    }
    detail::require<data_error>(left == 0, call, " was given counts of ", values - left, " values in all, and ", values,
                                " values.");
  }
};

}  // namespace moiety
