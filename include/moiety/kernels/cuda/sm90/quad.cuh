// SPDX-License-Identifier: Apache-2.0
// How the sums of a warpgroup leave it for the epilogues of tile_epilogue.cuh, without shared memory.
//
// Of a row, the four lanes of a quad hold two columns each of every block of 8 columns (matrices.hpp, sum_element). Four
// adjacent blocks are transposed among the four lanes, which leaves each lane one whole block: 8 adjacent columns, and the
// quad 32, so that it stores 64 bytes of a row of 16-bit elements side by side.
//
// Blocks l, 4 + l, 8 + l and 12 + l of 128 columns end up in lane l, so of the halvings that sum a row, s_(i^8) and s_(i^4)
// are in the lane, s_(i^2) and s_(i^1) between lanes: the order that tile_epilogue.cuh promises.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/cuda/sm90/matrices.hpp>
#include <moiety/kernels/cuda/sm90/tile_shape.hpp>
#include <moiety/kernels/cuda/tiles.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

inline constexpr unsigned whole_warp = 0xffffffffu;

/// Lane q of a quad brings columns 2q and 2q + 1 of blocks 0 ... 3, and takes the 8 columns of block q.
__device__ inline void transpose_quad(float const (&pairs)[4][2], float (&block)[8]) {
  bool const odd = (threadIdx.x & 1u) != 0, high = (threadIdx.x & 2u) != 0;
  MOIETY_REGISTERS
  for (int c = 0; c < 2; ++c) {
    float const got_low = __shfl_xor_sync(whole_warp, odd ? pairs[0][c] : pairs[1][c], 1);
    float const got_high = __shfl_xor_sync(whole_warp, odd ? pairs[2][c] : pairs[3][c], 1);
    // Columns of blocks (lane & 1) and 2 + (lane & 1): from the even lane of this pair of lanes, and from the odd one.
    float const low[2] = {odd ? got_low : pairs[0][c], odd ? pairs[1][c] : got_low};
    float const top[2] = {odd ? got_high : pairs[2][c], odd ? pairs[3][c] : got_high};
    MOIETY_REGISTERS
    for (int lane = 0; lane < 2; ++lane) {
      float const got = __shfl_xor_sync(whole_warp, high ? low[lane] : top[lane], 2);
      block[2 * lane + c] = high ? got : low[lane];
      block[4 + 2 * lane + c] = high ? top[lane] : got;
    }
  }
}

/// The four blocks from `first` on, of this lane's row `half` of two, 8 apart: 8 columns of block `first` + lane % 4.
template <int N> __device__ inline void take_block(float const (&sums)[N], int first, bool half, float (&block)[8]) {
  float pairs[4][2];
  MOIETY_REGISTERS
  for (int j = 0; j < 4; ++j) {
    MOIETY_REGISTERS
    for (int c = 0; c < 2; ++c) pairs[j][c] = half ? sums[4 * (first + j) + 2 + c] : sums[4 * (first + j) + c];
  }
  transpose_quad(pairs, block);
}

/// Sums what the 16 blocks of 128 columns returned, of which these are this lane's four. All lanes get it.
__device__ inline float sum_blocks(float const (&parts)[4]) {
  float sum = (parts[0] + parts[2]) + (parts[1] + parts[3]);
  sum += __shfl_xor_sync(whole_warp, sum, 2);
  sum += __shfl_xor_sync(whole_warp, sum, 1);
  return sum;
}

/// Hands the sums of a warpgroup over: its row 0 is row `first` of the tile, its columns those of M matrices of n columns,
/// `Width` of each in the tile.
template <int M, int Width, class Epilogue>
__device__ inline void hand_over_quads(float const (&sums)[M * Width / 2], int first, tile_task const& of,
                                       std::int64_t n, Epilogue const& epilogue) {
  constexpr int groups = Width / 32;
  static_assert(Width % 32 == 0);
  int const thread = static_cast<int>(threadIdx.x) % warpgroup_threads, lane = thread % 4;
#pragma unroll 1  // the epilogue is written out for the groups of blocks already
  for (int half = 0; half < 2; ++half) {
    int const row = first + sum_element(thread, 0).row + 8 * half;
    [[maybe_unused]] float parts[groups];
    MOIETY_REGISTERS
    for (int i = 0; i < groups; ++i) {
      gpu::several<float[8], M> blocks;
      MOIETY_REGISTERS
      for (int m = 0; m < M; ++m) take_block(sums, m * Width / 8 + 4 * i, half != 0, blocks[m]);
      std::int64_t const col = std::int64_t{of.column_tile} * Width + (4 * i + lane) * 8;
      int const count = n - col < 8 ? static_cast<int>(n - col) : 8;
      bool const exists = row < of.rows && count > 0;
      if constexpr (gpu::sums_rows<Epilogue>)
        parts[i] = exists ? epilogue(of.group, std::int64_t{of.first_row} + row, col, count, blocks) : 0.0f;
      else if (exists)
        epilogue(of.group, std::int64_t{of.first_row} + row, col, count, blocks);
    }
    if constexpr (gpu::sums_rows<Epilogue>) {
      static_assert(M == 1 && Width == cuda_column_tile, "sums of rows need one matrix");
      float const sum = sum_blocks(parts);
      if (lane == 0 && row < of.rows) epilogue.row_sum(std::int64_t{of.first_row} + row, of.column_tile, sum);
    }
  }
}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
