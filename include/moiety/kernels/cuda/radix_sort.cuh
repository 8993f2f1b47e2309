// SPDX-License-Identifier: Apache-2.0
// The permutation of a routing by CUB's radix sort, which is stable: the one that counting_sort builds, bit for bit.
//
//   struct sorted : one_gpu { using index_builder = mo::radix_sort; };
//
// Slots (t, j) in the order of t · k + j are sorted by expert; those without a row come last, as if of
// expert E. Entries of source_tokens from the last row on are left alone.
//
// The sort's workspace, about 16 bytes a slot, comes from the engine's arena beyond what describe() counts, and goes back
// when the call returns. Nothing waits for the device. Throws data_error where slots do not fit a row index of 32 bits.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/permute.hpp>

#include <cuda_runtime.h>
#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace kernels::gpu {

inline constexpr int sort_threads = 256;

/// keys[t k + j] is the expert of slot j of token t, or E; slots[i] = i.
template <class S>
__global__ void __launch_bounds__(sort_threads)
    list_slots(routing_view<S> const routes, std::uint32_t* keys, std::uint32_t* slots) {
  std::int64_t const slot = std::int64_t{blockIdx.x} * sort_threads + threadIdx.x;
  if (slot >= routes.tokens * routes.slots) return;
  bool const has_row = routes.dispatched(slot / routes.slots) && routes.ids[slot] >= 0;
  keys[slot] = static_cast<std::uint32_t>(has_row ? routes.ids[slot] : routes.experts);
  slots[slot] = static_cast<std::uint32_t>(slot);
}

/// Thread i writes what follows from sorted slot i, and the first row of expert i.
template <int = 0>
__global__ void __launch_bounds__(sort_threads)
    place_sorted(std::uint32_t const* keys, std::uint32_t const* slots, permutation_view const out) {
  std::int64_t const i = std::int64_t{blockIdx.x} * sort_threads + threadIdx.x, count = out.tokens * out.slots;
  if (i < count) {
    bool const dispatched = keys[i] < out.experts;
    out.positions[slots[i]] = dispatched ? static_cast<std::int32_t>(i) : -1;
    if (dispatched) out.source_tokens[i] = static_cast<std::int32_t>(slots[i] / out.slots);
  }
  if (i > out.experts) return;
  std::int64_t first = 0;
  for (std::int64_t last = count; first < last;) {
    std::int64_t const middle = first + (last - first) / 2;
    if (keys[middle] < i)
      first = middle + 1;
    else
      last = middle;
  }
  out.starts[i] = first;
}

/// Sorts pairs, or with no workspace says how many bytes it needs.
inline std::size_t sort_pairs(cuda_engine& engine, void* workspace, std::size_t bytes, std::uint32_t* const (&keys)[2],
                              std::uint32_t* const (&slots)[2], std::int32_t count, std::int64_t experts) {
  moiety::detail::device_scope const scope(engine.device());
  moiety::detail::expect(cub::DeviceRadixSort::SortPairs(
                             workspace, bytes, static_cast<std::uint32_t const*>(keys[0]), keys[1],
                             static_cast<std::uint32_t const*>(slots[0]), slots[1], count, 0,
                             static_cast<int>(std::bit_width(static_cast<std::uint64_t>(experts))), engine.stream()),
                         "CUB's radix sort");
  return bytes;
}

}  // namespace kernels::gpu

struct radix_sort {
  static constexpr std::string_view name = "radix_sort";
  template <class Backend> static constexpr bool runs_on = std::same_as<Backend, cuda>;

  template <class S>
  static void build(cuda_engine& engine, routing_view<S> const& routes, permutation_view const& out) {
    using namespace kernels::gpu;
    detail::check_rows(routes.tokens, routes.slots);
    auto const count = static_cast<std::int32_t>(routes.tokens * routes.slots);
    buffer const lists(4 * std::int64_t{count} * static_cast<std::int64_t>(sizeof(std::uint32_t)), engine.memory());
    auto* const first = static_cast<std::uint32_t*>(lists.data());
    std::uint32_t* const keys[2]{first, first + count};
    std::uint32_t* const slots[2]{keys[1] + count, keys[1] + 2 * std::int64_t{count}};
    engine.launch("radix_sort", list_slots<S>, {blocks(count), sort_threads}, routes, keys[0], slots[0]);
    if (count > 0) {
      std::size_t const bytes = sort_pairs(engine, nullptr, 0, keys, slots, count, routes.experts);
      buffer const workspace(static_cast<std::int64_t>(bytes), engine.memory());
      sort_pairs(engine, workspace.data(), bytes, keys, slots, count, routes.experts);
    }
    engine.launch("radix_sort", place_sorted<>,
                  {blocks(std::max<std::int64_t>(count, routes.experts + 1)), sort_threads},
                  static_cast<std::uint32_t const*>(keys[1]), static_cast<std::uint32_t const*>(slots[1]), out);
  }

 private:
  static std::int64_t blocks(std::int64_t threads) {
    return (threads + kernels::gpu::sort_threads - 1) / kernels::gpu::sort_threads;
  }
};

}  // namespace moiety
