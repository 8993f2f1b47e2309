// SPDX-License-Identifier: Apache-2.0
// What exchanges do with rows of device memory, in the order of a context's stream. Indices lie in device memory too.
//
//   copy_rows(engine, from, to)           row i of from → row i of to, of the same number and width; from may be another context's
//   add_values(engine, from, count, to)   to[i] = to[i] + from[i], rounded to their type
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>

#include <cuda_runtime.h>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::detail {

inline constexpr int moving_threads = 128;

/// Bytes that one access moves.
template <int Bytes> struct alignas(Bytes) moved_unit { unsigned char bytes[Bytes]; };

/// A block has `moving_threads` / lanes rows at a time, each of `lanes` threads, a power of two.
template <class Unit>
__global__ void __launch_bounds__(moving_threads)
    move_rows(outgoing_rows const from, incoming_rows const to, int units, int lanes) {
  std::int64_t const together = moving_threads / lanes, stride = std::int64_t{gridDim.x} * together;
  std::int64_t row = std::int64_t{blockIdx.x} * together + static_cast<int>(threadIdx.x) / lanes;
  for (; row < from.rows; row += stride) {
    std::int64_t const source = from.index == nullptr ? row : from.index[row];
    std::int64_t const target = to.index == nullptr ? row : to.index[row];
    auto const* const read = reinterpret_cast<Unit const*>(from.data + source * from.stride);
    auto* const written = reinterpret_cast<Unit*>(to.data + target * to.stride);
    for (int u = static_cast<int>(threadIdx.x) % lanes; u < units; u += lanes) written[u] = read[u];
  }
}

template <class V>
__global__ void __launch_bounds__(moving_threads) add_values_to(V const* from, std::int64_t count, V* to) {
  std::int64_t const stride = std::int64_t{gridDim.x} * moving_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * moving_threads + threadIdx.x; i < count; i += stride)
    to[i] = static_cast<V>(to[i] + from[i]);
}

inline launch_shape moving_blocks(cuda_engine const& engine, std::int64_t pieces) {
  return {engine.blocks_in_turn(pieces), moving_threads};
}

inline void copy_rows(cuda_engine& engine, outgoing_rows const& from, incoming_rows const& to) {
  if (from.bytes() == 0) return;
  auto const place = [](auto const& rows) {
    return reinterpret_cast<std::uintptr_t>(rows.data) | static_cast<std::uintptr_t>(rows.stride);
  };
  std::uintptr_t const places = place(from) | place(to) | static_cast<std::uintptr_t>(from.width);
  auto const move = [&]<int Bytes>(moved_unit<Bytes> const&) {
    int const units = static_cast<int>(from.width / Bytes);
    int lanes = 1;
    while (lanes < units && lanes < moving_threads) lanes *= 2;
    std::int64_t const together = moving_threads / lanes;
    engine.launch("copy_rows", move_rows<moved_unit<Bytes>>,
                  moving_blocks(engine, (from.rows + together - 1) / together), from, to, units, lanes);
  };
  if (places % 16 == 0) return move(moved_unit<16>{});
  if (places % 8 == 0) return move(moved_unit<8>{});
  if (places % 4 == 0) return move(moved_unit<4>{});
  if (places % 2 == 0) return move(moved_unit<2>{});
  move(moved_unit<1>{});
}

template <class V> void add_values(cuda_engine& engine, V const* from, std::int64_t count, V* to) {
  engine.launch("add_values", add_values_to<V>, moving_blocks(engine, (count + moving_threads - 1) / moving_threads),
                from, count, to);
}

}  // namespace moiety::inline MOIETY_ABI::detail
