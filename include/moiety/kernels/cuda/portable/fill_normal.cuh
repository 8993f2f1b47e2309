// SPDX-License-Identifier: Apache-2.0
// fill_normal on a CUDA device: a thread draws the four normals of one block of the generator, so values are those of the
// host and a block is drawn once.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/core/random.hpp>
#include <moiety/kernels/fill_normal.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int normal_threads = 128;

template <scalar T>
__global__ void __launch_bounds__(normal_threads)
    draw_normals(matrix_view<T> const x, double deviation, seed key, std::uint64_t stream, std::int64_t first) {
  std::int64_t const count = x.rows() * x.cols(), last = first + count;
  std::int64_t const threads = std::int64_t{gridDim.x} * blockDim.x;
  std::int64_t block = first / 4 + std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; block * 4 < last; block += threads) {
    philox_block const words = random_block(key, stream, static_cast<std::uint64_t>(block));
    for (std::int64_t i = 0; i < 4; ++i) {
      std::int64_t const index = block * 4 + i - first;
      if (index < 0 || index >= count) continue;
      double const value = deviation * normal_of(words[static_cast<std::uint64_t>(i)]);
      x(index / x.cols(), index % x.cols()) = static_cast<T>(static_cast<sum_t<T>>(value));
    }
  }
}

}  // namespace gpu

template <scalar T>
void fill_normal(cuda_engine& engine, matrix_view<T> x, double deviation, seed key, std::uint64_t stream,
                 std::int64_t first) {
  std::int64_t const count = x.rows() * x.cols();
  if (count == 0) return;
  std::int64_t const generator_blocks = (first + count + 3) / 4 - first / 4;
  std::int64_t const blocks = std::min((generator_blocks + gpu::normal_threads - 1) / gpu::normal_threads,
                                       std::int64_t{16} * engine.multiprocessors());
  engine.launch("fill_normal", gpu::draw_normals<T>, {blocks, gpu::normal_threads}, x, deviation, key, stream, first);
}

}  // namespace moiety::inline MOIETY_ABI::kernels
