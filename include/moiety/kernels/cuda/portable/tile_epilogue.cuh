// SPDX-License-Identifier: Apache-2.0
// How the sums of a tile leave a block: through shared memory, so that a thread has 8 adjacent columns of a row.
//
// An epilogue is a struct of device pointers, passed by value:
//
//   template <std::size_t N> __device__ void operator()(std::int64_t group, std::int64_t row, std::int64_t col, int count,
//                                                       S const (&sums)[M][N]) const;
//
// N adjacent columns from col of one row of the row space, of which the first `count` exist (the others' sums are finite
// or not, and mean nothing). With `static constexpr bool sums_rows = true` operator() returns an S, and
//
//   __device__ void row_sum(std::int64_t row, std::int64_t tile, S sum) const;
//
// is called once per row and column tile of cuda_column_tile columns, with the sum of what operator() returned there:
// ((0+8)+(4+12))+... over the 16 blocks of 8 columns, by halves: s_i += s_(i^8), s_(i^4), s_(i^2), s_(i^1).
//
// An epilogue that rounds its sums to a storage type before anything else may say so, `using rounded = bf16`: kernels may then
// hand it sums that are rounded already. One that reads memory of its own at those columns says what it would read, so that
// it is on its way early; operator() takes it as a last argument:
//
//   template <int N> struct saved;
//   template <int N> __device__ saved<N> read(std::int64_t row, std::int64_t col, int count) const;
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/tiles.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

/// Columns of the tiles over which an epilogue's row sums run.
inline constexpr std::int64_t cuda_column_tile = 128;

namespace gpu {

template <class Epilogue>
concept sums_rows = requires {
  requires Epilogue::sums_rows;
};

template <class Epilogue>
concept reads_rows = requires {
  typename Epilogue::template saved<8>;
};

/// Columns of one of M matrices that stand side by side in a tile of `columns`.
MOIETY_HD constexpr int matrix_columns(int columns, int matrices) {
  int shared = 1;
  while (shared < matrices) shared *= 2;
  return columns / shared;
}

/// The sums of a tile in shared memory. The pitch spreads what a warp writes over all banks.
template <class S, int Rows, int Columns> struct staged_tile {
  using sum = S;
  static constexpr int columns = Columns, pitch = Columns + 8;
  static constexpr std::int64_t bytes = std::int64_t{Rows} * pitch * static_cast<std::int64_t>(sizeof(S));
  S* sums;

  __device__ S* at(int row, int col) const { return sums + row * pitch + col; }
  __device__ void load(int row, int col, S (&to)[8]) const { load_wide(at(row, col), to); }
};

/// What an epilogue reads of its own for 8 columns of a row; nothing of most.
template <class Epilogue> struct saved_columns {
  __device__ void read(Epilogue const&, std::int64_t, std::int64_t, int) {}
  template <class S, std::size_t M>
  __device__ auto hand_over(Epilogue const& to, std::int64_t group, std::int64_t row, std::int64_t col, int count,
                            S const (&sums)[M][8]) const {
    return to(group, row, col, count, sums);
  }
};
template <reads_rows Epilogue> struct saved_columns<Epilogue> {
  typename Epilogue::template saved<8> values;
  __device__ void read(Epilogue const& of, std::int64_t row, std::int64_t col, int count) {
    values = of.template read<8>(row, col, count);
  }
  template <class S, std::size_t M>
  __device__ auto hand_over(Epilogue const& to, std::int64_t group, std::int64_t row, std::int64_t col, int count,
                            S const (&sums)[M][8]) const {
    return to(group, row, col, count, sums, values);
  }
};

/// Whether what an epilogue reads for a row fits the registers beside what it read for the row before.
template <class Epilogue> inline constexpr bool reads_ahead = sizeof(saved_columns<Epilogue>) <= 48;

/// Hands the staged sums of M matrices of n columns over, `Threads` threads of the block together, of which this is `thread`.
template <int M, int Threads, class Staged, class Epilogue>
__device__ void hand_over(Staged const& staged, tile const& of, std::int64_t n, Epilogue const& epilogue, int thread) {
  using S = typename Staged::sum;
  constexpr int width = matrix_columns(Staged::columns, M), lanes = width / 8, rows = Threads / lanes;
  static_assert(lanes >= 1 && lanes <= 32 && Threads % lanes == 0);
  int const lane = thread % lanes;
  std::int64_t const col = of.column_tile * width + lane * 8;
  int const count = n - col < 8 ? static_cast<int>(n - col) : 8;
  auto const exists = [&](int row) { return row < of.rows && count > 0; };
  saved_columns<Epilogue> next;
  if (reads_ahead<Epilogue> && exists(thread / lanes)) next.read(epilogue, of.first_row + thread / lanes, col, count);
  // All lanes of a warp make the same number of rounds, as they meet in the sums of rows.
  for (int first = 0; first < of.rows; first += rows) {
    int const row = first + thread / lanes;
    saved_columns<Epilogue> saved;
    if constexpr (reads_ahead<Epilogue>) {
      saved = next;
      if (exists(row + rows)) next.read(epilogue, of.first_row + row + rows, col, count);
    } else {
      if (exists(row)) saved.read(epilogue, of.first_row + row, col, count);
    }
    several<several<S, 8>, M> sums;
    if (exists(row)) {
      MOIETY_REGISTERS
      for (int m = 0; m < M; ++m) staged.load(row, m * width + lane * 8, sums[m]);
    }
    if constexpr (sums_rows<Epilogue>) {
      static_assert(width == cuda_column_tile, "sums of rows need one matrix");
      S sum = exists(row) ? saved.hand_over(epilogue, of.group, of.first_row + row, col, count, sums) : S{0};
      MOIETY_REGISTERS
      for (int half = lanes / 2; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
      if (lane == 0 && row < of.rows) epilogue.row_sum(of.first_row + row, of.column_tile, sum);
    } else {
      if (exists(row)) saved.hand_over(epilogue, of.group, of.first_row + row, col, count, sums);
    }
  }
}

/// Writes sums as rows of T.
template <class T, class S> struct store_rows {
  using rounded = T;
  T* to;
  std::int64_t stride;

  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t row, std::int64_t col, int count, S const (&sums)[1][N]) const {
    store_columns<N>(to + row * stride + col, count, sums[0]);
  }
};

/// Writes sums as rows of a matrix of each group, or adds them to what is there: in one pass, which spares registers.
template <class S> struct store_matrix {
  S* data;
  std::int64_t group_stride, row_stride;
  bool add;

  template <std::size_t N>
  __device__ void operator()(std::int64_t group, std::int64_t row, std::int64_t col, int count,
                             S const (&sums)[1][N]) const {
    S* const to = data + group * group_stride + row * row_stride + col;
    using vector = column_vector<S, static_cast<int>(N)>;
    if (moves_wide<static_cast<int>(N)>(to, count)) {
      MOIETY_REGISTERS
      for (int i = 0; i < static_cast<int>(N); i += vector::count) {
        vector part;
        if (add) part = load_vector<vector>(to + i);
        MOIETY_REGISTERS
        for (int j = 0; j < vector::count; ++j) part.set(j, add ? part.element(j) + sums[0][i + j] : sums[0][i + j]);
        store_vector(to + i, part);
      }
      return;
    }
    MOIETY_REGISTERS
    for (std::size_t c = 0; c < N; ++c)
      if (static_cast<int>(c) < count) to[c] = add ? to[c] + sums[0][c] : sums[0][c];
  }
};

}  // namespace gpu
}  // namespace moiety::inline MOIETY_ABI::kernels
