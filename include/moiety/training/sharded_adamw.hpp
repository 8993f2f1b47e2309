// SPDX-License-Identifier: Apache-2.0
// AdamW whose states are spread over the ranks that hold a tensor (ZeRO, stage 1): of n values, rank r of N keeps the moments
// and the master copy of slice_of(n, r, N), of any n and N. It changes its slice of the weights, then all ranks exchange theirs.
//
//   mo::sharded_adamw<float, C> optimiser{groups};
//   mo::reduce_gradients(list, groups, {.where = mo::summed::slices});       or everywhere
//   bool const taken = optimiser.step(parameters, rate, mo::global_norm(list, groups));
//
// The weights have the bits of mo::adamw for the same gradients, as it has its arithmetic and adds nothing over ranks. Every
// rank of the run takes part in a step; the norm is the same on all, so all take it or, where the norm is not finite, none does
// and nothing has changed. A comm_error within a step ends the run: weights may then be of either step, and are to be loaded
// again.
//
// step may be given an engine, as that of adamw. prepare, for_each_state, steps and resume are those of adamw; states are this
// rank's. prepare is a collective; where ranks of a group list different tensors it throws config_error on all of them.
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/training/adamw.hpp>
#include <moiety/training/replication.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

namespace detail {

/// A tensor of which every rank has its slice.
struct sliced_tensor {
  std::span<std::byte> bytes;
  std::int64_t width = 0;  // of an element

  std::span<std::byte> slice(int rank, int size) const {
    range_of const r = slice_of(static_cast<std::int64_t>(bytes.size()) / width, rank, size);
    return bytes.subspan(static_cast<std::size_t>(r.first * width), static_cast<std::size_t>(r.count * width));
  }
};

/// One tensor, straight to its place.
template <communicator C> void gather_slices(sliced_tensor const& t, C& group) {
  auto const gather = [&]<class Element>(Element) {
    group.template all_gather_slices<Element>(
        {reinterpret_cast<Element*>(t.bytes.data()), t.bytes.size() / sizeof(Element)});
  };
  if (t.width == 2) return gather(std::uint16_t{});
  if (t.width == 4) return gather(std::uint32_t{});
  gather(std::uint64_t{});
}

/// Several tensors in one message to each rank.
template <communicator C> void gather_slices(std::span<sliced_tensor const> tensors, C& group) {
  std::vector<std::byte> mine;
  for (auto const& t : tensors) {
    auto const slice = t.slice(group.rank(), group.size());
    mine.insert(mine.end(), slice.begin(), slice.end());
  }
  auto const all = group.template all_gather_v<std::byte>(mine);
  auto from = all.begin();
  for (int r = 0; r < group.size(); ++r)
    for (auto const& t : tensors) {
      auto const slice = t.slice(r, group.size());
      auto const end = from + static_cast<std::ptrdiff_t>(slice.size());
      std::copy(from, end, slice.begin());
      from = end;
    }
}

}  // namespace detail

template <std::floating_point S, communicator C> class sharded_adamw {
 public:
  explicit sharded_adamw(rank_groups<C> const& groups, adamw_options const& options = {},
                         std::int64_t bucket_bytes = std::int64_t{4} << 20)
      : groups_(groups), states_(options), bucket_bytes_(bucket_bytes) {
    detail::require<config_error>(bucket_bytes > 0, "bucket_bytes must be positive, but is ", bucket_bytes, '.');
  }

  template <class Parameters> void prepare(Parameters const& parameters) {
    if (!states_.prepared())
      for (replicated const over : replications) expect_agreement(parameters, over);
    states_.prepare(parameters, [&](auto const& t) {
      C& group = groups_.of(t.over);
      return slice_of(static_cast<std::int64_t>(t.weights.size()), group.rank(), group.size());
    });
  }

  /// Whether the step was taken; not where the norm is not finite.
  template <class Parameters, class Engine = detail::in_one_piece>
  bool step(Parameters const& parameters, double rate, double norm, Engine&& engine = {}) {
    detail::check_rate(rate);
    if (!std::isfinite(norm)) return false;
    prepare(parameters);
    states_.step(parameters, rate, engine);
    for (replicated const over : replications) gather(parameters, over);
    return true;
  }

  std::int64_t steps() const { return states_.steps(); }
  void resume(std::int64_t steps) { states_.resume(steps); }
  template <class F> void for_each_state(F const& f) { states_.for_each_state(f); }

 private:
  template <class Parameters> void expect_agreement(Parameters const& parameters, replicated over) {
    C& group = groups_.of(over);
    if (group.size() == 1) return;
    fnv_1a listed;
    parameters([&](auto const& t) {
      if (t.over == over) detail::add_tensor(listed, t.name, t.weights.size_bytes());
    });
    detail::expect_same_tensors(group, listed, "sharded_adamw");
  }

  template <class Parameters> void gather(Parameters const& parameters, replicated over) {
    C& group = groups_.of(over);
    if (group.size() == 1) return;
    std::vector<detail::sliced_tensor> tensors;
    parameters([&]<class T>(trained_tensor<T> const& t) {
      if (t.over == over) tensors.push_back({std::as_writable_bytes(t.weights), sizeof(T)});
    });
    detail::for_each_bucket(
        tensors.size(), bucket_bytes_,
        [&](std::size_t i) { return static_cast<std::int64_t>(tensors[i].bytes.size()); },
        [&](std::size_t first, std::size_t last) {
          if (last - first == 1) return detail::gather_slices(tensors[first], group);
          detail::gather_slices(std::span<detail::sliced_tensor const>(tensors).subspan(first, last - first), group);
        });
  }

  rank_groups<C> groups_;
  detail::adamw_states<S> states_;
  std::int64_t bucket_bytes_;
};

}  // namespace moiety
