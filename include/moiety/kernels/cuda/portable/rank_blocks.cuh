// SPDX-License-Identifier: Apache-2.0
// rank_blocks on a CUDA device: parts and offsets stay there, and nothing of what travels is known to the host.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/backend/device_rows.cuh>
#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/rank_blocks.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int listing_threads = 256;

/// Threads that share the rows of blocks: `lanes` of them, a power of two, have one, and 16 bytes of it at a time.
struct row_lanes {
  int lanes;
  launch_shape shape;

  template <class V> static row_lanes of(cuda_engine const& engine, std::int64_t rows, std::int64_t width) {
    constexpr std::int64_t columns = 16 / static_cast<int>(sizeof(V));
    row_lanes found{1, {}};
    while (found.lanes * columns < width && found.lanes < moiety::detail::moving_threads) found.lanes *= 2;
    std::int64_t const together = moiety::detail::moving_threads / found.lanes;
    found.shape = moiety::detail::moving_blocks(engine, (rows + together - 1) / together);
    return found;
  }
};

/// f(row) for the rows of this thread, f(col, count) for its columns of one of them.
template <class F> __device__ void for_rows_of_thread(std::int64_t rows, int lanes, F const& f) {
  std::int64_t const together = static_cast<int>(blockDim.x) / lanes, stride = gridDim.x * together;
  for (std::int64_t row = blockIdx.x * together + static_cast<int>(threadIdx.x) / lanes; row < rows; row += stride)
    f(row);
}
template <int N, class F> __device__ void for_columns_of_thread(std::int64_t width, int lanes, F const& f) {
  for (std::int64_t col = static_cast<int>(threadIdx.x) % lanes * N; col < width; col += lanes * N)
    f(col, static_cast<int>(width - col < N ? width - col : N));
}

/// Rows that there is room for; others are a fault.
__device__ inline std::int64_t rows_with_room(std::int64_t rows, std::int64_t most, cuda_faults* faults) {
  if (rows >= 0 && rows <= most) return rows;
  atomicMin(&faults->excess_rows, static_cast<long long>(rows));
  return rows < 0 ? 0 : most;
}

template <class V>
__global__ void __launch_bounds__(listing_threads)
    list_sent_parts(rank_blocks<V> const shape, int copies, std::int64_t const* starts, range_of* parts,
                    cuda_faults* faults) {
  std::int64_t const i = std::int64_t{blockIdx.x} * listing_threads + threadIdx.x;
  if (i >= shape.parts()) return;
  std::int64_t const* const start = starts + i / shape.experts / copies * shape.experts + i % shape.experts;
  parts[i] = {start[0], rows_with_room(start[1] - start[0], shape.most, faults)};
}

/// One block: rows of each expert, where those begin, and where those of each rank do.
template <class V>
__global__ void __launch_bounds__(listing_threads)
    list_arrived_parts(rank_blocks<V> const shape, std::byte* blocks, range_of* parts, std::int64_t* offsets,
                       cuda_faults* faults) {
  for (std::int64_t e = threadIdx.x; e < shape.experts; e += listing_threads) {
    std::int64_t rows = 0;
    for (std::int64_t r = 0; r < shape.ranks; ++r) {
      std::int64_t const count = rows_with_room(shape.counts(blocks, r)[e], shape.most, faults);
      parts[r * shape.experts + e] = {rows, count};
      rows += count;
    }
    offsets[e + 1] = rows;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    offsets[0] = 0;
    for (std::int64_t e = 0; e < shape.experts; ++e) offsets[e + 1] += offsets[e];
  }
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < shape.parts(); i += listing_threads)
    parts[i].first += offsets[i % shape.experts];
}

template <class V>
__global__ void __launch_bounds__(moiety::detail::moving_threads)
    pack_rows(rank_blocks<V> const shape, rows_of<V> const from, range_of const* parts, std::byte* blocks, int lanes) {
  constexpr int N = 16 / static_cast<int>(sizeof(V));
  std::int64_t const threads = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < shape.parts(); i += threads)
    shape.counts(blocks, i / shape.experts)[i % shape.experts] = parts[i].count;
  for_rows_of_thread(shape.parts() * shape.most, lanes, [&](std::int64_t row) {
    std::int64_t const part = row / shape.most, i = row % shape.most;
    V* const to = shape.rows(blocks, part / shape.experts, part % shape.experts) + i * shape.width;
    bool const there = i < parts[part].count;
    V const* const read = there ? from.row(parts[part].first + i) : nullptr;
    for_columns_of_thread<N>(shape.width, lanes, [&](std::int64_t col, int count) {
      V values[N] = {};
      if (there) load_columns<N>(read + col, count, values);
      store_columns<N>(to + col, count, values);
    });
  });
}

template <class V>
__global__ void __launch_bounds__(moiety::detail::moving_threads)
    unpack_rows(rank_blocks<V> const shape, std::byte* blocks, range_of const* parts, int copies, V* to, int lanes) {
  constexpr int N = 16 / static_cast<int>(sizeof(V));
  for_rows_of_thread(shape.parts() / copies * shape.most, lanes, [&](std::int64_t row) {
    std::int64_t const place = row / shape.most, i = row % shape.most, e = place % shape.experts;
    std::int64_t const first = place / shape.experts * copies;
    range_of const part = parts[first * shape.experts + e];
    if (i >= part.count) return;
    for_columns_of_thread<N>(shape.width, lanes, [&](std::int64_t col, int count) {
      auto const of_rank = [&](std::int64_t r) { return shape.rows(blocks, r, e) + i * shape.width + col; };
      V sums[N];
      load_columns<N>(of_rank(first), count, sums);
      for (int copy = 1; copy < copies; ++copy) {
        V values[N];
        load_columns<N>(of_rank(first + copy), count, values);
        MOIETY_REGISTERS
        for (int j = 0; j < N; ++j) sums[j] = static_cast<V>(sums[j] + values[j]);
      }
      store_columns<N>(to + (part.first + i) * shape.width + col, count, sums);
    });
  });
}

}  // namespace gpu

template <class V>
std::int64_t list_sent(cuda_engine& engine, rank_blocks<V> const& shape, int copies, std::int64_t const* starts,
                       range_of* parts) {
  std::int64_t const blocks = (shape.parts() + gpu::listing_threads - 1) / gpu::listing_threads;
  engine.launch("list_sent", gpu::list_sent_parts<V>, {blocks, gpu::listing_threads}, shape, copies, starts, parts,
                engine.faults());
  return 0;
}

template <class V>
void pack(cuda_engine& engine, rank_blocks<V> const& shape, rows_of<V> const& from, range_of const* parts,
          std::byte* blocks) {
  std::int64_t const at_least_counts = 1;
  auto const by = gpu::row_lanes::of<V>(engine, std::max(shape.parts() * shape.most, at_least_counts), shape.width);
  engine.launch("pack", gpu::pack_rows<V>, by.shape, shape, from, parts, blocks, by.lanes);
}

template <class V>
std::int64_t list_arrived(cuda_engine& engine, rank_blocks<V> const& shape, std::byte* blocks, range_of* parts,
                          std::int64_t* offsets) {
  engine.launch("list_arrived", gpu::list_arrived_parts<V>, {1, gpu::listing_threads}, shape, blocks, parts, offsets,
                engine.faults());
  return 0;
}

template <class V>
void unpack(cuda_engine& engine, rank_blocks<V> const& shape, std::byte* blocks, range_of const* parts, int copies,
            V* to) {
  auto const by = gpu::row_lanes::of<V>(engine, shape.parts() / copies * shape.most, shape.width);
  engine.launch("unpack", gpu::unpack_rows<V>, by.shape, shape, blocks, parts, copies, to, by.lanes);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
