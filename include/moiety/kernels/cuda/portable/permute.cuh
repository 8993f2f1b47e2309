// SPDX-License-Identifier: Apache-2.0
// build_permutation on a CUDA device, in two launches and without a host read: a counting sort that keeps token order.
//
//   count   each block counts the slots of its tokens by expert, in shared memory
//   place   each block adds the counts of all and of those before it, which gives the rows at which its slots of an expert begin;
//           each of its warps takes a part of its tokens and gives its slots rows in their order
//
// A row depends on the routing alone, not on the number of blocks. list_routed is a permutation of one expert.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/kernels/cuda/instructions.cuh>
#include <moiety/kernels/permute.hpp>
#include <moiety/kernels/route.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int index_threads = 1024, index_warps = index_threads / 32;
inline constexpr std::int64_t shared_counts = 48 * 1024 / 4 - index_warps;  // of a block, beside sum_before's
inline constexpr std::int64_t most_indexed_experts = 4000;
static_assert(3 * most_indexed_experts <= shared_counts);

/// The slots of tokens that are to be sorted, by expert: those of dispatched tokens that have one. There are fewer than 2³¹.
struct routed_slots {
  std::int32_t const* ids;
  token_state const* states;
  std::int64_t tokens;
  int experts, slots;

  __device__ std::uint32_t token(std::int64_t slot) const {
    return static_cast<std::uint32_t>(slot) / static_cast<std::uint32_t>(slots);
  }
  __device__ int expert(std::int64_t slot) const {
    return states[token(slot)] <= token_state::sanitised ? ids[slot] : -1;
  }
  __device__ void place(permutation_view const& out, std::int64_t slot, std::int64_t row) const {
    out.positions[slot] = static_cast<std::int32_t>(row);
    if (row >= 0) out.source_tokens[row] = static_cast<std::int32_t>(token(slot));
  }
};

/// Tokens that take part in losses, as slots of one expert; there are no positions.
struct routed_list {
  token_state const* states;
  std::int64_t tokens;
  static constexpr int experts = 1, slots = 1;

  __device__ int expert(std::int64_t token) const { return states[token] == token_state::routed ? 0 : -1; }
  __device__ void place(permutation_view const& out, std::int64_t token, std::int64_t row) const {
    if (row >= 0) out.source_tokens[row] = static_cast<std::int32_t>(token);
  }
};

/// How tokens are cut: `blocks` parts of `each` tokens, and each part again for the warps of its block.
struct token_cut {
  std::int64_t blocks, each;
  int warps;
};

inline token_cut cut_tokens(std::int64_t tokens, std::int64_t experts) {
  constexpr std::int64_t least = 128, most_blocks = 128;  // of which each reads the counts of all
  std::int64_t const by_scratch = cuda_engine::scratch_bytes / (experts * static_cast<std::int64_t>(sizeof(int)));
  std::int64_t const blocks =
      std::clamp<std::int64_t>((tokens + least - 1) / least, 1, std::min(most_blocks, by_scratch));
  std::int64_t const warps = std::clamp<std::int64_t>(shared_counts / experts - 2, 1, index_warps);
  return {blocks, (tokens + blocks - 1) / blocks, static_cast<int>(warps)};
}

/// Slots [first, last) of a part of the tokens.
struct slot_range {
  std::int64_t first, last;
};

template <class Slots> __device__ slot_range slots_of_block(Slots const& of, token_cut const& cut) {
  std::int64_t const first = blockIdx.x * cut.each, end = first + cut.each;
  return {(first < of.tokens ? first : of.tokens) * of.slots, (end < of.tokens ? end : of.tokens) * of.slots};
}

/// The part of a warp; whole groups of 32 slots, so that the warps' parts differ in nothing but their place.
__device__ inline slot_range slots_of_warp(slot_range const& block, int warp, int warps) {
  std::int64_t const groups = (block.last - block.first + 31) / 32, each = (groups + warps - 1) / warps * 32;
  std::int64_t const first = block.first + warp * each, last = first + each;
  return {first < block.last ? first : block.last, last < block.last ? last : block.last};
}

/// counts[block][e]
template <class Slots>
__global__ void __launch_bounds__(index_threads) count_slots(Slots const of, token_cut const cut, int* counts) {
  int* const mine = reinterpret_cast<int*>(dynamic_shared());
  for (int e = static_cast<int>(threadIdx.x); e < of.experts; e += index_threads) mine[e] = 0;
  __syncthreads();
  slot_range const range = slots_of_block(of, cut);
  for (std::int64_t slot = range.first + threadIdx.x; slot < range.last; slot += index_threads)
    if (int const e = of.expert(slot); e >= 0) atomicAdd(&mine[e], 1);
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < of.experts; e += index_threads)
    counts[std::int64_t{blockIdx.x} * of.experts + e] = mine[e];
}

/// The sum of `value` over the lanes up to this one.
__device__ inline int sum_up_to_lane(int value) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  MOIETY_REGISTERS
  for (int step = 1; step < 32; step *= 2) {
    int const before = __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(step));
    if (lane >= step) value += before;
  }
  return value;
}

/// The sum of `value` over the threads of the block before this one; every thread calls it once.
template <int Threads> __device__ int sum_before(int value) {
  __shared__ int warp_sums[static_cast<unsigned>(Threads) / 32];
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int const sum = sum_up_to_lane(value);
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int base = 0;
  for (int w = 0; w < warp; ++w) base += warp_sums[w];
  return base + sum - value;
}

/// Adds the counts of all blocks by expert, and of those before this one. A warp takes every index_warps-th block; counts of
/// several blocks and experts are on their way together.
__device__ inline void add_counts(int const* counts, std::int64_t blocks, int experts, int* all, int* before) {
  constexpr int together = 4, words = 4;
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int first = lane; first < experts; first += words * 32) {
    int sums[words] = {}, sums_before[words] = {};
    for (std::int64_t block = warp; block < blocks; block += together * index_warps) {
      int here[together][words];
      MOIETY_REGISTERS
      for (int i = 0; i < together; ++i) {
        MOIETY_REGISTERS
        for (int word = 0; word < words; ++word) {
          std::int64_t const of = block + i * index_warps;
          int const e = first + word * 32;
          here[i][word] = of < blocks && e < experts ? counts[of * experts + e] : 0;
        }
      }
      MOIETY_REGISTERS
      for (int i = 0; i < together; ++i) {
        MOIETY_REGISTERS
        for (int word = 0; word < words; ++word) {
          sums[word] += here[i][word];
          sums_before[word] += block + i * index_warps < blockIdx.x ? here[i][word] : 0;
        }
      }
    }
    MOIETY_REGISTERS
    for (int word = 0; word < words; ++word) {
      int const e = first + word * 32;
      if (e < experts) atomicAdd(&all[e], sums[word]), atomicAdd(&before[e], sums_before[word]);
    }
  }
}

/// first_rows, which holds the slots of blocks before, becomes the rows where the block's slots begin; block 0 writes starts.
__device__ inline void start_rows(int const* all, int experts, int* first_rows, std::int64_t* starts) {
  int const each = (experts + index_threads - 1) / index_threads, begin = static_cast<int>(threadIdx.x) * each,
            end = begin + each < experts ? begin + each : experts;
  int sum = 0;
  for (int e = begin; e < end; ++e) sum += all[e];
  int row = sum_before<index_threads>(sum);
  for (int e = begin; e < end; ++e) {
    first_rows[e] += row;
    if (blockIdx.x == 0) starts[e] = row;
    row += all[e];
  }
  if (blockIdx.x == 0 && threadIdx.x == index_threads - 1) starts[experts] = row;
}

template <class Slots>
__global__ void __launch_bounds__(index_threads, 1)
    place_slots(Slots const of, token_cut const cut, int const* counts, permutation_view const out) {
  int* const all = reinterpret_cast<int*>(dynamic_shared());  // [experts]
  int* const first_rows = all + of.experts;                   // [experts]
  int* const next = first_rows + of.experts;                  // [warps][experts]: the next row of an expert's slots
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int i = static_cast<int>(threadIdx.x); i < (2 + cut.warps) * of.experts; i += index_threads) all[i] = 0;
  __syncthreads();
  bool const works = warp < cut.warps;
  slot_range const range = works ? slots_of_warp(slots_of_block(of, cut), warp, cut.warps) : slot_range{0, 0};
  int* const mine = next + warp * of.experts;
  for (std::int64_t slot = range.first + lane; slot < range.last; slot += 32)
    if (int const e = of.expert(slot); e >= 0) atomicAdd(&mine[e], 1);
  add_counts(counts, cut.blocks, of.experts, all, first_rows);
  __syncthreads();
  start_rows(all, of.experts, first_rows, out.starts);
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < of.experts; e += index_threads) {
    int row = first_rows[e];
    for (int w = 0; w < cut.warps; ++w) {
      int const here = next[w * of.experts + e];
      next[w * of.experts + e] = row;
      row += here;
    }
  }
  __syncthreads();
  for (std::int64_t first = range.first; first < range.last; first += 32) {
    std::int64_t const slot = first + lane;
    bool const exists = slot < range.last;
    int const e = exists ? of.expert(slot) : -1;
    unsigned const alike = __match_any_sync(0xffffffffu, e);
    int const before = __popc(alike & ((1u << lane) - 1u));
    int const row = e >= 0 ? mine[e] + before : -1;
    __syncwarp();
    if (e >= 0 && before == 0) mine[e] += __popc(alike);
    __syncwarp();
    if (exists) of.place(out, slot, row);
  }
}

template <class Slots> void sort_slots(cuda_engine& engine, Slots const& of, permutation_view const& out) {
  token_cut const cut = cut_tokens(of.tokens, of.experts);
  int* const counts = reinterpret_cast<int*>(engine.scratch());
  std::int64_t const row_bytes = of.experts * static_cast<std::int64_t>(sizeof(int));
  engine.launch("build_permutation: count", count_slots<Slots>, {cut.blocks, index_threads, row_bytes}, of, cut,
                counts);
  engine.launch("build_permutation: place", place_slots<Slots>,
                {cut.blocks, index_threads, (2 + cut.warps) * row_bytes}, of, cut, static_cast<int const*>(counts),
                out);
}

}  // namespace gpu

template <class S>
void build_permutation(cuda_engine& engine, routing_view<S> const& routes, permutation_view const& out) {
  std::int64_t const k = routes.slots, tokens = routes.tokens;
  moiety::detail::check_rows(tokens, k);
  moiety::detail::require<config_error>(routes.experts <= gpu::most_indexed_experts,
                                        "a permutation on a device has at most ", gpu::most_indexed_experts,
                                        " experts, but this one has ", routes.experts, '.');
  gpu::sort_slots(
      engine,
      gpu::routed_slots{routes.ids, routes.states, tokens, static_cast<int>(routes.experts), static_cast<int>(k)}, out);
}

inline void list_routed(cuda_engine& engine, token_state const* states, std::int64_t tokens, std::int32_t* routed,
                        std::int64_t* offsets) {
  gpu::sort_slots(engine, gpu::routed_list{states, tokens}, permutation_view{tokens, 1, 1, offsets, routed, nullptr});
}

}  // namespace moiety::inline MOIETY_ABI::kernels
