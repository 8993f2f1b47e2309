// SPDX-License-Identifier: Apache-2.0
// The sum rule: gradients are sums over tokens, micro-batches and ranks, and one division ends the step.
//
//   mo::reduce_gradients(list, groups);                                      Σ over the ranks that hold a tensor
//   mo::normalise(list, mo::total_weight(groups.world, weight));             ÷ Σ weight of the step
//
// A rank's weight is that of the tokens whose task loss it computed; ranks that computed none give 0. What a rank has of a
// gradient is the sum over its own tokens, of an expert the sum over the rows that came to it. So no factor depends on the
// layout, and uneven batches or ranks without tokens need none.
//
// reduction::mean is for frameworks whose loss is the mean over a rank's own tokens, averaged over the ranks of data ·
// context. The factor of every gradient is 1 / (data · context), of experts too: their rows came from all of these ranks,
// whatever number of ranks holds them.
//
// Sums have the order of the ranks, ((r₀ + r₁) + r₂) + …, for each element, so bits do not depend on the bucket size. With
// mo::numerics::fastest, which groups_of(ctx) knows, they are the transport's all_reduce_fastest and reduce_scatter_fastest: of
// mo::threads the same, of mo::mpi in the order of MPI's own, for the size of a bucket. Small tensors travel together in
// buckets; a tensor larger than a bucket travels alone, where it lies. A group of one rank is left as it is.
//
//   reduce_gradients   config_error on all ranks of a group that list different tensors; data_error for tensors that share
//                      memory
//   total_weight       data_error on all ranks where one gives a weight that is negative or not finite
//   normalise          data_error for such a total; a step without tokens, of weight 0, is not divided
#pragma once

#include <moiety/backend/transport/communicator.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/mesh/agreement.hpp>
#include <moiety/training/replication.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moiety::inline MOIETY_ABI {

enum class reduction { sum, mean };

/// Where the sums are needed: in all of a tensor on every rank, or in slice_of(n, rank, size) of it, as sharded_adamw asks.
enum class summed { everywhere, slices };

struct reduce_options {
  reduction how = reduction::sum;
  summed where = summed::everywhere;
  std::int64_t bucket_bytes = std::int64_t{4} << 20;
};

/// Σ of the ranks' weights; the same on every rank, in any order.
template <communicator C> double total_weight(C& world, double mine) {
  exact_sum sum;
  sum.add(mine >= 0 ? mine : detail::not_a_number<double>);
  world.all_reduce(std::span(&sum, 1));
  double const total = sum.value();
  detail::require_together<data_error>(world, std::isfinite(total),
                                       "a rank's weight of the step is negative or not finite.");
  return total;
}

/// Divides all gradients.
template <std::floating_point S> void normalise(gradient_list<S> const& gradients, double weight) {
  detail::require<data_error>(std::isfinite(weight) && weight >= 0,
                              "gradients are divided by a finite weight of at least 0, but were given ", weight, '.');
  if (weight == 0) return;
  for (auto const& slice : gradients)
    for (S& g : slice.values) g = static_cast<S>(static_cast<double>(g) / weight);
}

namespace detail {

template <class S, communicator C> void sum_whole(std::span<S> values, C& group, bool fastest) {
  fastest ? group.all_reduce_fastest(values) : group.all_reduce(values);
}
template <class S, communicator C>
void sum_parts(std::span<S> values, std::span<std::int64_t const> counts, C& group, bool fastest) {
  fastest ? group.reduce_scatter_fastest(values, counts) : group.reduce_scatter_v(values, counts);
}

template <class S, communicator C> void reduce_whole(std::span<std::span<S> const> bucket, C& group, bool fastest) {
  std::vector<S> packed;
  for (auto const& t : bucket) packed.insert(packed.end(), t.begin(), t.end());
  sum_whole(std::span<S>(packed), group, fastest);
  S const* from = packed.data();
  for (auto const& t : bucket) {
    std::copy_n(from, t.size(), t.data());
    from += t.size();
  }
}

template <class S> std::span<S> slice_of_tensor(std::span<S> t, int rank, int size) {
  range_of const r = slice_of(static_cast<std::int64_t>(t.size()), rank, size);
  return t.subspan(static_cast<std::size_t>(r.first), static_cast<std::size_t>(r.count));
}

/// Part r has slice r of every tensor of the bucket.
template <class S, communicator C> void reduce_slices(std::span<std::span<S> const> bucket, C& group, bool fastest) {
  std::vector<S> packed;
  std::vector<std::int64_t> counts;
  std::size_t mine = 0;
  for (int r = 0; r < group.size(); ++r) {
    std::size_t const before = packed.size();
    if (r == group.rank()) mine = before;
    for (auto const& t : bucket) {
      auto const slice = slice_of_tensor(t, r, group.size());
      packed.insert(packed.end(), slice.begin(), slice.end());
    }
    counts.push_back(static_cast<std::int64_t>(packed.size() - before));
  }
  sum_parts(std::span<S>(packed), counts, group, fastest);
  S const* from = packed.data() + mine;
  for (auto const& t : bucket) {
    auto const slice = slice_of_tensor(t, group.rank(), group.size());
    std::copy_n(from, slice.size(), slice.data());
    from += slice.size();
  }
}

template <class S, communicator C>
void reduce_bucket(std::span<std::span<S> const> bucket, C& group, summed where, bool fastest) {
  std::span<S> const first = bucket[0];
  if (where == summed::everywhere)
    bucket.size() == 1 ? sum_whole(first, group, fastest) : reduce_whole(bucket, group, fastest);
  else if (bucket.size() > 1)
    reduce_slices(bucket, group, fastest);
  else
    sum_parts(first, slice_counts(static_cast<std::int64_t>(first.size()), group.size()), group, fastest);
}

}  // namespace detail

/// Sums every gradient over the ranks that hold its tensor. A collective of the groups of more than one rank.
template <std::floating_point S, communicator C>
void reduce_gradients(gradient_list<S> const& gradients, rank_groups<C> const& groups,
                      reduce_options const& options = {}) {
  detail::require<config_error>(options.bucket_bytes > 0, "bucket_bytes must be positive, but is ",
                                options.bucket_bytes, '.');
  detail::expect_disjoint(gradients);
  for (replicated const over : replications) {
    C& group = groups.of(over);
    if (group.size() == 1) continue;
    std::vector<std::span<S>> tensors;
    fnv_1a listed;
    for (auto const& slice : gradients)
      if (slice.over == over) {
        tensors.push_back(slice.values);
        detail::add_tensor(listed, slice.name, slice.values.size());
      }
    detail::expect_same_tensors(group, listed, "reduce_gradients");
    detail::for_each_bucket(
        tensors.size(), options.bucket_bytes,
        [&](std::size_t i) { return static_cast<std::int64_t>(tensors[i].size_bytes()); },
        [&](std::size_t first, std::size_t last) {
          detail::reduce_bucket<S>(std::span(tensors).subspan(first, last - first), group, options.where,
                                   groups.fastest);
        });
  }
  if (options.how == reduction::mean) normalise(gradients, static_cast<double>(groups.data_context.size()));
}

}  // namespace moiety
