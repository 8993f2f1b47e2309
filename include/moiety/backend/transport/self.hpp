// SPDX-License-Identifier: Apache-2.0
// The transport of one rank, and the concept that every transport's communicator models.
//
// A communicator knows its rank and size, and sums exact values in place over its ranks.
#pragma once

#include <moiety/core/config.hpp>

#include <concepts>
#include <cstdint>
#include <span>

namespace moiety::inline MOIETY_ABI {

template <class C>
concept communicator = requires(C& c, std::span<std::int64_t> counts) {
  { c.rank() } -> std::convertible_to<int>;
  { c.size() } -> std::convertible_to<int>;
  c.all_reduce(counts);
};

class self_communicator {
 public:
  int rank() const { return 0; }
  int size() const { return 1; }
  /// Each value becomes the sum of the ranks' values.
  template <class T> void all_reduce(std::span<T>) {}
};
static_assert(communicator<self_communicator>);

struct self {
  static constexpr bool single_rank = true;
  using communicator = self_communicator;
};

}  // namespace moiety
