// SPDX-License-Identifier: Apache-2.0
// How the sums of a warpgroup leave its registers.
//
//   staged_sums   a tile's sums in shared memory, of type Sum: float, or what the epilogue would round them to. Chunks of 16
//                 bytes of a row are exchanged by an XOR with the row, so that neither stores nor loads meet in a bank
//   store_pairs   to an epilogue of float sums at once: the pairs of columns of a quad of lanes are 32 bytes of a row
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/cuda/sm90/matrices.hpp>
#include <moiety/kernels/cuda/sm90/tile_shape.hpp>
#include <moiety/kernels/cuda/tiles.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

template <class Sum, int Columns> struct staged_sums {
  using sum = float;
  static constexpr int columns = Columns, chunk = 16 / static_cast<int>(sizeof(Sum));
  static_assert(Columns % (8 * chunk) == 0 && (sizeof(Sum) == 2 || sizeof(Sum) == 4));
  std::byte* data;

  /// Bytes from the start to a column of a row.
  MOIETY_HD static constexpr int offset(int row, int col) {
    int const exchanged = sizeof(Sum) == 2 ? row & 7 : (row & 3) << 1 | (row >> 2 & 1);
    return row * Columns * static_cast<int>(sizeof(Sum)) + ((col / chunk) ^ exchanged) * 16 +
           col % chunk * static_cast<int>(sizeof(Sum));
  }
  /// The sums of a warpgroup, whose row 0 is row `first`.
  __device__ void store(float const (&sums)[Columns / 2], int first) const {
    using pair = gpu::column_vector<Sum, 2>;
    int thread = static_cast<int>(threadIdx.x) % warpgroup_threads;
    asm volatile("" : "+r"(thread));  // or the compiler keeps all addresses in registers while tiles are multiplied
    MOIETY_REGISTERS
    for (int i = 0; i < Columns / 2; i += 2) {
      auto const at = sum_element(thread, i);
      pair two;
      two.set(0, static_cast<Sum>(sums[i])), two.set(1, static_cast<Sum>(sums[i + 1]));
      *reinterpret_cast<pair*>(data + offset(first + at.row, at.col)) = two;
    }
  }
  __device__ void load(int row, int col, float (&to)[8]) const {
    MOIETY_REGISTERS
    for (int c = 0; c < 8; c += chunk) {
      auto const part = gpu::load_vector<gpu::column_vector<Sum, chunk>>(data + offset(row, col + c));
      MOIETY_REGISTERS
      for (int i = 0; i < chunk; ++i) to[c + i] = static_cast<float>(part.element(i));
    }
  }
};

/// Hands the sums of a warpgroup over, whose row 0 is row `first` of the tile, to matrices of n columns.
template <int Columns, class S>
__device__ inline void store_pairs(float const (&sums)[Columns / 2], int first, tile_task const& of, std::int64_t n,
                                   gpu::store_matrix<S> const& to) {
  int thread = static_cast<int>(threadIdx.x) % warpgroup_threads;
  asm volatile("" : "+r"(thread));  // as above
  using pair = gpu::column_vector<S, 2>;
  std::int64_t const left = std::int64_t{of.column_tile} * Columns;
  MOIETY_REGISTERS
  for (int half = 0; half < 2; ++half) {
    auto const corner = sum_element(thread, 2 * half);
    int const row = first + corner.row;
    if (row >= of.rows) continue;
    S* const at = to.data + of.group * to.group_stride + (of.first_row + row) * to.row_stride + left + corner.col;
    bool const whole = n - left >= Columns && reinterpret_cast<std::uintptr_t>(at) % sizeof(pair) == 0;
    if (whole && !to.add) {
      MOIETY_REGISTERS
      for (int i = 2 * half; i < Columns / 2; i += 4) {
        pair two;
        two.set(0, sums[i]), two.set(1, sums[i + 1]);
        gpu::store_vector(at + 2 * (i - 2 * half), two);
      }
      continue;
    }
    MOIETY_REGISTERS
    for (int i = 2 * half; i < Columns / 2; i += 4) {
      float const two[1][2] = {{sums[i], sums[i + 1]}};
      std::int64_t const col = left + corner.col + 2 * (i - 2 * half);
      int const count = n - col < 2 ? static_cast<int>(n - col) : 2;
      if (count > 0) to(of.group, std::int64_t{of.first_row} + row, col, count, two);
    }
  }
}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
