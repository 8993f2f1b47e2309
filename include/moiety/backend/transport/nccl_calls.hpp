// SPDX-License-Identifier: Apache-2.0
// What a group of ranks asks NCCL for at a time.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::detail {

template <class T> constexpr ncclDataType_t nccl_type() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, std::int64_t>,
                "mo::nccl sums float, double and std::int64_t.");
  return std::is_same_v<T, float> ? ncclFloat32 : std::is_same_v<T, double> ? ncclFloat64 : ncclInt64;
}

/// Calls to NCCL that are one operation.
struct nccl_calls {
  ncclComm_t comm;
  cudaStream_t stream;
  ncclResult_t first = ncclSuccess;  // that is no success

  void keep(ncclResult_t result) {
    if (first == ncclSuccess) first = result;
  }
  void send(int peer, std::byte const* data, std::int64_t bytes) {
    if (bytes > 0) keep(ncclSend(data, static_cast<std::size_t>(bytes), ncclUint8, peer, comm, stream));
  }
  void receive(int peer, std::byte* data, std::int64_t bytes) {
    if (bytes > 0) keep(ncclRecv(data, static_cast<std::size_t>(bytes), ncclUint8, peer, comm, stream));
  }
  /// Blocks of so many bytes, to and from every rank.
  void exchange(std::byte const* out, std::byte* in, std::int64_t bytes) {
    if (bytes > 0) keep(ncclAlltoAll(out, in, static_cast<std::size_t>(bytes), ncclUint8, comm, stream));
  }
  void exchange(rank_operation const& what, std::size_t rank, std::span<outgoing_rows const> to,
                std::span<incoming_rows const> from) {
    if (what.equal) return exchange(to[0].data, from[0].data, what.width);
    for (std::size_t r = 0; r < to.size(); ++r) {
      if (r == rank && to[r].data == from[r].data) continue;
      receive(static_cast<int>(r), from[r].data, from[r].bytes());
      send(static_cast<int>(r), to[r].data, to[r].bytes());
    }
  }
  /// Sums in place: on every rank, or of one part after another on the rank that it belongs to.
  template <class T> void sum(std::span<T> values) {
    keep(ncclAllReduce(values.data(), values.data(), values.size(), nccl_type<T>(), ncclSum, comm, stream));
  }
  template <class T> void sum(std::span<T> values, std::span<std::int64_t const> counts) {
    T* part = values.data();
    for (int rank = 0; std::int64_t const n : counts) {
      if (n > 0) keep(ncclReduce(part, part, static_cast<std::size_t>(n), nccl_type<T>(), ncclSum, rank, comm, stream));
      part += n, ++rank;
    }
  }
};

}  // namespace moiety::inline MOIETY_ABI::detail
