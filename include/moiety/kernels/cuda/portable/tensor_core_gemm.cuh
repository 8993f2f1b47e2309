// SPDX-License-Identifier: Apache-2.0
// Grouped products of bf16, fp16, float in tf32, or e4m3 (nt only), by mma.sync, with float sums.
//
// A block makes a tile of 128 or 32 rows and 128 columns (of M matrices side by side) by steps of 64 k, of floats 32,
// of e4m3 128. Copies into a ring of three stages run two steps ahead; stages are swizzled tiles of fragments.hpp,
// filled from the operands as they lie, gathered and transposed on the way. An output is summed by m16n8k16, of floats
// m16n8k8, in ascending k (m first, then k; in tn over the rows of the group), the rest of the last step being zeros,
// so its bits depend neither on the tile's height nor on other rows. Of e4m3, m16n8k32 sums each step from zero, and
// what it makes is added in float: not all tensor cores keep enough bits of such sums for many steps.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/kernels/cuda/fragments.hpp>
#include <moiety/kernels/cuda/instructions.cuh>
#include <moiety/kernels/cuda/portable/find_tile.cuh>
#include <moiety/kernels/cuda/portable/product.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/cuda/tiles.hpp>

#include <cuda_runtime.h>

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

/// Blocks of a multiprocessor that share its registers: as many as its shared memory takes of the rings of the large tile.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
inline constexpr int tensor_blocks = 1;
#else
inline constexpr int tensor_blocks = 2;
#endif

/// Warps stand in row_warps x 4; each has warp_rows x 32 sums.
template <int Rows> struct tensor_tile {
  static_assert(Rows == 128 || Rows == 32);
  static constexpr int rows = Rows, columns = 128, stages = 3;
  static constexpr int row_warps = Rows == 128 ? 2 : 1, column_warps = 4;
  static constexpr int threads = 32 * row_warps * column_warps;
  static constexpr int warp_rows = rows / row_warps, warp_columns = columns / column_warps;
  static constexpr int row_blocks = warp_rows / 16, column_blocks = warp_columns / 8;
  static constexpr int a_bytes = rows * tile_row_bytes, stage_bytes = (rows + columns) * tile_row_bytes;
  using staged = staged_tile<float, rows, columns>;
  static constexpr std::int64_t shared_bytes =
      stages * stage_bytes > staged::bytes ? std::int64_t{stages * stage_bytes} : staged::bytes;
};

/// Elements of a chunk of 16 bytes, and k of a tile.
template <class T> inline constexpr int chunk_of = 16 / static_cast<int>(sizeof(T));
template <class T> inline constexpr int depth_of = tile_row_bytes / static_cast<int>(sizeof(T));
static_assert(chunk_of<bf16> == chunk_elements && depth_of<bf16> == tile_depth);

/// Whether a tile's depth is summed from zero, and then added to the sums in float.
template <class T> inline constexpr bool sums_steps_apart = std::same_as<T, e4m3>;
/// Sums of a step want registers of their own, and so do operands where the compiler makes fp16 of e4m3, as for sm_90
/// and 100.
template <class T> inline constexpr int tensor_blocks_of = sums_steps_apart<T> ? 1 : tensor_blocks;

/// The first `count` elements into a chunk of shared memory, zeros behind them. Wide: from a multiple of 16 bytes.
template <bool Wide, class T> __device__ inline void copy_chunk(std::byte* to, T const* from, int count) {
  if constexpr (Wide) {
    copy_async_16(to, from, count * static_cast<int>(sizeof(T)));
  } else {
    struct alignas(16) chunk {
      T elements[static_cast<std::size_t>(chunk_of<T>)];
    } values;
    MOIETY_REGISTERS
    for (int i = 0; i < chunk_of<T>; ++i) values.elements[i] = i < count ? from[i] : T{};
    *reinterpret_cast<chunk*>(to) = values;
  }
}

/// How many elements of a chunk exist, if `left` exist from its first on.
template <class T> __device__ inline int chunk_count(std::int64_t left) {
  return left >= chunk_of<T> ? chunk_of<T> : left > 0 ? static_cast<int>(left) : 0;
}

/// Fills a k-first tile: a thread copies chunk `thread % 8` of some rows.
template <class T, int Rows, int Threads> struct k_first_tile {
  static constexpr int chunks = Rows * 8 / Threads, step = Threads / 8;
  several<T const*, chunks> from;
  unsigned exists = 0;

  /// f(row, first) is the start of tile row `first` + `row`, or null where there is none; then `somewhere` stands in, of
  /// which nothing is read. `first` is known at compile time, once the loop is written out, and `row` < step.
  template <class Function> __device__ void aim(T const* somewhere, Function const& f) {
    exists = 0;
    MOIETY_REGISTERS
    for (int i = 0; i < chunks; ++i) {
      T const* const row = f(static_cast<int>(threadIdx.x) / 8, i * step);
      from[i] = row != nullptr ? row : somewhere;
      exists |= (row != nullptr ? 1u : 0u) << i;
    }
  }
  template <bool Wide> __device__ void fill(std::byte* to, std::int64_t k0, std::int64_t k) const {
    int const chunk = static_cast<int>(threadIdx.x) % 8, row = static_cast<int>(threadIdx.x) / 8;
    std::int64_t const first = k0 + chunk * chunk_of<T>;
    int const count = chunk_count<T>(k - first);
    MOIETY_REGISTERS
    for (int i = 0; i < chunks; ++i)
      copy_chunk<Wide>(to + chunk_offset(row, chunk) + i * step * tile_row_bytes, from[i] + first,
                       (exists >> i & 1u) != 0 ? count : 0);
  }
};

/// Fills an outer-first tile of 128 outer elements: a thread copies chunk `thread % 16` of some of its 64 k.
template <class T, int Threads> struct outer_first_tile {
  static constexpr int chunks = 64 * 16 / Threads, step = Threads / 16;

  __device__ static int first_k() { return static_cast<int>(threadIdx.x) / 16; }

  /// f(i) is the row of k `first_k() + i * step`, of which `depth` exist; columns of it from `col` on, of `cols`.
  template <bool Wide, class Function>
  __device__ static void fill(std::byte* to, std::int64_t depth, std::int64_t col, std::int64_t cols,
                              Function const& f) {
    int const chunk = static_cast<int>(threadIdx.x) % 16, k = first_k();
    std::int64_t const first = col + chunk * chunk_elements;
    int const count = chunk_count<T>(cols - first);
    std::byte* const panel = to + chunk / 8 * panel_bytes + chunk_offset(k, chunk % 8);
    MOIETY_REGISTERS
    for (int i = 0; i < chunks; ++i)
      copy_chunk<Wide>(panel + i * step * tile_row_bytes, f(i) + first, k + i * step < depth ? count : 0);
  }
};

/// The same of floats: a thread copies chunk `thread % 32` of some of its 32 k.
template <int Threads> struct outer_first_tile<float, Threads> {
  static constexpr int chunks = 32 * 32 / Threads, step = Threads / 32;
  static_assert(step % 4 == 0);  // or the exchange of chunks would not be the same in all rows of a thread

  __device__ static int first_k() { return static_cast<int>(threadIdx.x) / 32; }

  template <bool Wide, class Function>
  __device__ static void fill(std::byte* to, std::int64_t depth, std::int64_t col, std::int64_t cols,
                              Function const& f) {
    int const chunk = static_cast<int>(threadIdx.x) % 32, k = first_k();
    std::int64_t const first = col + chunk * chunk_of<float>;
    int const count = chunk_count<float>(cols - first);
    std::byte* const start = to + float_chunk_offset(k, chunk);
    MOIETY_REGISTERS
    for (int i = 0; i < chunks; ++i)
      copy_chunk<Wide>(start + i * step * float_outer * 4, f(i) + first, k + i * step < depth ? count : 0);
  }
};

/// Rows of a group in steps of a tile's depth, for sums over rows. The numbers of the next step's rows are read a step ahead.
template <class T, int Threads> struct summed_rows {
  using tile_type = outer_first_tile<T, Threads>;
  rows_of<T> of;
  std::int64_t first, last;
  several<std::int32_t, tile_type::chunks> next;

  __device__ summed_rows(rows_of<T> const& rows, std::int64_t begin, std::int64_t end)
      : of(rows), first(begin), last(end) {
    number();
  }
  __device__ void number() {
    MOIETY_REGISTERS
    for (int i = 0; i < tile_type::chunks; ++i) {
      std::int64_t const row = first + tile_type::first_k() + i * tile_type::step;
      next[i] = row < last ? static_cast<std::int32_t>(row_number(of, row)) : 0;
    }
  }
  template <bool Wide> __device__ void fill(std::byte* to, std::int64_t col, std::int64_t cols) {
    tile_type::template fill<Wide>(to, last - first, col, cols, [&](int i) { return of.data + next[i] * of.stride; });
    first += depth_of<T>;
    number();
  }
};

template <class T, int Rows, int Threads>
__device__ inline void aim_at_rows(k_first_tile<T, Rows, Threads>& to, rows_of<T> const& of, tile const& at) {
  to.aim(of.data, [&](int row, int first) -> T const* {
    return first + row < at.rows ? of.data + row_number(of, at.first_row + first + row) * of.stride : nullptr;
  });
}

/// Operands of rows times stored matrices [n x k].
template <class T, int Rows, int M, class Scales> struct scaled_tensor_nt {
  using shape = tensor_tile<Rows>;
  using product = rows_product<T, T, 1, M, Scales>;
  static constexpr int matrices = M, width = matrix_columns(shape::columns, M);
  static constexpr tile_order a_order = tile_order::k_first, b_order = tile_order::k_first;

  k_first_tile<T, Rows, shape::threads> a;
  k_first_tile<T, shape::columns, shape::threads> b;
  std::int64_t k, k0 = 0;
  std::int64_t steps;

  product const& given;
  tile const& where;

  __device__ scaled_tensor_nt(product const& of, tile const& at)
      : k(of.k), steps(tiles_of(of.k, depth_of<T>)), given(of), where(at) {
    static_assert(width % decltype(b)::step == 0);
    aim_at_rows(a, of.a[0], at);
    b.aim(of.w[0].data, [&](int row, int first) -> T const* {
      int const m = first / width;
      std::int64_t const col = at.column_tile * width + first % width + row;
      if (m >= M || col >= of.n) return nullptr;
      return of.w[m].data + at.group * of.w[m].group_stride + col * of.w[m].row_stride;
    });
  }
  template <bool Wide> __device__ void fill(std::byte* stage) {
    a.template fill<Wide>(stage, k0, k);
    b.template fill<Wide>(stage + shape::a_bytes, k0, k);
    k0 += depth_of<T>;
  }
  /// What the sum of a step is multiplied with, of a row and a column of the tile.
  __device__ float factor(int row, int col, int step) const {
    if constexpr (Scales::any)
      return row < where.rows ? given.scales.of_row(where.first_row + row, step) *
                                    given.scales.of_columns(where.group, where.column_tile, width, col, step)
                              : 0.0f;
    else
      return 1;
  }
};

template <class T, int Rows, int M> using tensor_nt = scaled_tensor_nt<T, Rows, M, no_scales>;

/// Operands of M times rows times matrices [k x n], in one sum.
template <class T, int Rows, int M> struct tensor_nn {
  using shape = tensor_tile<Rows>;
  using product = rows_product<T, T, M, M>;
  static constexpr int matrices = 1, width = shape::columns;
  static constexpr tile_order a_order = tile_order::k_first, b_order = tile_order::outer_first;
  using b_tile = outer_first_tile<T, shape::threads>;

  product const& of;
  tile const& at;
  k_first_tile<T, Rows, shape::threads> a;
  T const* b;  // the row of this thread's first k
  std::int64_t b_stride;
  std::int64_t k0 = 0;
  int m = 0;
  std::int64_t steps;

  __device__ tensor_nn(product const& with, tile const& where)
      : of(with), at(where), steps(M * tiles_of(with.k, depth_of<T>)) {
    aim();
  }
  __device__ void aim() {
    MOIETY_REGISTERS
    for (int i = 0; i < M; ++i)
      if (i == m) {
        aim_at_rows(a, of.a[i], at);
        b_stride = of.w[i].row_stride;
        b = of.w[i].data + at.group * of.w[i].group_stride + b_tile::first_k() * b_stride;
      }
  }
  template <bool Wide> __device__ void fill(std::byte* stage) {
    a.template fill<Wide>(stage, k0, of.k);
    b_tile::template fill<Wide>(stage + shape::a_bytes, of.k - k0, at.column_tile * width, of.n,
                                [&](int i) { return b + (k0 + i * b_tile::step) * b_stride; });
    k0 += depth_of<T>;
    if (M > 1 && k0 >= of.k && m + 1 < M) {
      k0 = 0;
      ++m;
      aim();
    }
  }
};

/// Operands of sums over a group's rows.
template <class T> struct tensor_tn {
  using shape = tensor_tile<128>;
  using product = matrix_product<T, T, float>;
  static constexpr tile_order a_order = tile_order::outer_first, b_order = tile_order::outer_first;

  summed_rows<T, shape::threads> a, b;
  std::int64_t n, k, row, col;
  std::int64_t steps;

  __device__ tensor_tn(product const& of, matrix_tile const& at)
      : a(of.a, of.rows.first(at.group), of.rows.first(at.group + 1)),
        b(of.b, of.rows.first(at.group), of.rows.first(at.group + 1)),
        n(of.n),
        k(of.k),
        row(at.row_tile * shape::rows),
        col(at.column_tile * shape::columns),
        steps(tiles_of(of.rows.count(at.group), depth_of<T>)) {}
  template <bool Wide> __device__ void fill(std::byte* stage) {
    a.template fill<Wide>(stage, row, n);
    b.template fill<Wide>(stage + shape::a_bytes, col, k);
  }
};

/// What a lane has of A [16 x 16], or of two B [16 x 8] side by side, of floats with half as many k, of e4m3 with twice
/// as many. Corners are {outer, k} from that of the warp's part of the tile, k counted in elements of 16 bits.
template <class T, tile_order Order, bool OfA> struct fragment_source {
  int corner;
  element at;

  __device__ fragment_source(int lane, int warp_corner)
      : corner(warp_corner), at(OfA ? a_address<Order>(lane) : b_address<Order>(lane)) {}

  __device__ void load(std::uint32_t (&to)[4], std::byte const* tile, int outer, int k) const {
    std::byte const* const from = tile + block_offset<Order>(corner + outer, k, at);
    if constexpr (Order == tile_order::k_first)
      ldmatrix_x4(to, from);
    else
      ldmatrix_x4_trans(to, from);
    if constexpr (sizeof(T) == 4) {
      MOIETY_REGISTERS
      for (std::uint32_t& value : to) value = rounded_to_tf32(value);
    }
  }
};
template <bool OfA> struct fragment_source<float, tile_order::outer_first, OfA> {
  int place;

  __device__ fragment_source(int lane, int warp_corner)
      : place(float_offset_of_lane(lane) + float_offset_of_block(warp_corner, 0)) {}

  __device__ void load(std::uint32_t (&to)[4], std::byte const* tile, int outer, int k) const {
    MOIETY_REGISTERS
    for (int i = 0; i < 4; ++i) {
      int const eights = outer / 8 % 4 + (OfA ? i % 2 : i / 2), four = OfA ? i / 2 : i % 2;
      int const corner = float_offset_of_block(outer / 32 * 32, k / 2 + four * 4);
      std::byte const* const from = tile + (place ^ float_eights(eights)) + corner;
      to[i] = rounded_to_tf32(*reinterpret_cast<std::uint32_t const*>(from));
    }
  }
};

/// The sums of a warp.
template <class Shape> struct warp_sums {
  several<several<float[4], Shape::column_blocks>, Shape::row_blocks> values;
  int row, col, lane;

  __device__ warp_sums() {
    int const warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row = warp / Shape::column_warps * Shape::warp_rows;
    col = warp % Shape::column_warps * Shape::warp_columns;
    MOIETY_REGISTERS
    for (auto& blocks : values) {
      MOIETY_REGISTERS
      for (auto& block : blocks) {
        MOIETY_REGISTERS
        for (float& value : block) value = 0;
      }
    }
  }

  /// Adds the product of one stage.
  template <class T, tile_order A, tile_order B> __device__ void add(std::byte const* stage) {
    fragment_source<T, A, true> const a_from(lane, row);
    fragment_source<T, B, false> const b_from(lane, col);
    MOIETY_REGISTERS
    for (int k = 0; k < tile_depth; k += 16) {
      several<std::uint32_t[4], Shape::row_blocks> a;
      several<std::uint32_t[4], Shape::column_blocks / 2> b;
      constexpr bool one_by_one = sizeof(T) == 4;  // or rounding would take more registers than there are
      MOIETY_REGISTERS
      for (int i = 0; i < Shape::row_blocks; ++i)
        if (!one_by_one) a_from.load(a[i], stage, i * 16, k);
      MOIETY_REGISTERS
      for (int j = 0; j < Shape::column_blocks / 2; ++j) b_from.load(b[j], stage + Shape::a_bytes, j * 16, k);
      MOIETY_REGISTERS
      for (int i = 0; i < Shape::row_blocks; ++i) {
        if (one_by_one) a_from.load(a[i], stage, i * 16, k);
        MOIETY_REGISTERS
        for (int j = 0; j < Shape::column_blocks; ++j)
          mma<T>(values[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  /// The same, each block of rows summed from zero before it is added: so only one block's sums take registers twice. Factors of
  /// a row of the tile and of the warp's columns are those of operands that have scales.
  template <class T, tile_order A, tile_order B, class Factors>
  __device__ void add_apart(std::byte const* stage, Factors const& factors) {
    fragment_source<T, A, true> const a_from(lane, row);
    fragment_source<T, B, false> const b_from(lane, col);
    MOIETY_REGISTERS
    for (int i = 0; i < Shape::row_blocks; ++i) {
      several<float[4], Shape::column_blocks> part = {};
      float const factor[2] = {factors(row + i * 16 + lane / 4, col), factors(row + i * 16 + lane / 4 + 8, col)};
#pragma unroll 2  // written out, all operands come to registers at once
      for (int k = 0; k < tile_depth; k += 16) {
        std::uint32_t a[4];
        several<std::uint32_t[4], Shape::column_blocks / 2> b;
        a_from.load(a, stage, i * 16, k);
        MOIETY_REGISTERS
        for (int j = 0; j < Shape::column_blocks / 2; ++j) b_from.load(b[j], stage + Shape::a_bytes, j * 16, k);
        MOIETY_REGISTERS
        for (int j = 0; j < Shape::column_blocks; ++j) mma<T>(part[j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
      MOIETY_REGISTERS
      for (int j = 0; j < Shape::column_blocks; ++j) {
        MOIETY_REGISTERS
        for (int c = 0; c < 4; ++c) values[i][j][c] = fmaf(part[j][c], factor[c / 2], values[i][j][c]);
      }
    }
  }

  __device__ void store(typename Shape::staged const& staged) const {
    struct alignas(8) pair {
      float values[2];
    };
    element const at = c_element(lane, 0);
    MOIETY_REGISTERS
    for (int i = 0; i < Shape::row_blocks; ++i) {
      MOIETY_REGISTERS
      for (int j = 0; j < Shape::column_blocks; ++j) {
        float* const to = staged.at(row + i * 16 + at.row, col + j * 8 + at.col);
        float const(&sums)[4] = values[i][j];
        *reinterpret_cast<pair*>(to) = {{sums[0], sums[1]}};
        *reinterpret_cast<pair*>(to + 8 * Shape::staged::pitch) = {{sums[2], sums[3]}};
      }
    }
  }
};

/// Runs the ring over all steps of the operands, and leaves the sums in shared memory for every thread to read.
template <class T, bool Wide, class Operands>
__device__ typename Operands::shape::staged tensor_sums(Operands& operands, std::byte* shared) {
  using shape = typename Operands::shape;
  warp_sums<shape> sums;
  std::int64_t const steps = operands.steps;
  MOIETY_REGISTERS
  for (int stage = 0; stage < shape::stages - 1; ++stage) {
    if (stage < steps) operands.template fill<Wide>(shared + stage * shape::stage_bytes);
    commit_copies();
  }
  int read = 0, write = shape::stages - 1;
  for (std::int64_t step = 0; step < steps; ++step) {
    wait_copies<shape::stages - 2>();
    __syncthreads();  // this step's copies are there, and the stage of the last step has been read
    if (step + shape::stages - 1 < steps) operands.template fill<Wide>(shared + write * shape::stage_bytes);
    commit_copies();
    std::byte const* const stage = shared + read * shape::stage_bytes;
    if constexpr (sums_steps_apart<T>)
      sums.template add_apart<T, Operands::a_order, Operands::b_order>(
          stage, [&](int row, int col) { return operands.factor(row, col, static_cast<int>(step)); });
    else
      sums.template add<T, Operands::a_order, Operands::b_order>(stage);
    read = read + 1 == shape::stages ? 0 : read + 1;
    write = write + 1 == shape::stages ? 0 : write + 1;
  }
  __syncthreads();
  typename shape::staged const staged{reinterpret_cast<float*>(shared)};
  sums.store(staged);
  __syncthreads();
  return staged;
}

/// One tile of grouped_gemm_nt or _nn.
template <class T, class Operands, bool Wide, class Epilogue>
__global__ void __launch_bounds__(Operands::shape::threads, Wide ? tensor_blocks_of<T> : 1)
    tensor_rows(typename Operands::product const __grid_constant__ of, Epilogue const __grid_constant__ epilogue) {
  using shape = typename Operands::shape;
  tile const at = warp_find_tile(of.rows, blockIdx.x, shape::rows, tiles_of(of.n, Operands::width));
  if (at.rows == 0) return;
  Operands operands(of, at);
  auto const staged = tensor_sums<T, Wide>(operands, dynamic_shared());
  hand_over<Operands::matrices, shape::threads>(staged, at, of.n, epilogue, static_cast<int>(threadIdx.x));
}

/// One tile of grouped_gemm_tn.
template <class T, bool Wide>
__global__ void __launch_bounds__(tensor_tn<T>::shape::threads, Wide ? tensor_blocks : 1)
    tensor_matrix(matrix_product<T, T, float> const __grid_constant__ of) {
  using shape = typename tensor_tn<T>::shape;
  matrix_tile const at = find_matrix_tile(blockIdx.x, tiles_of(of.n, shape::rows), tiles_of(of.k, shape::columns));
  if (of.accumulate && of.rows.count(at.group) == 0) return;
  tensor_tn<T> operands(of, at);
  auto const staged = tensor_sums<T, Wide>(operands, dynamic_shared());
  std::int64_t const first = at.row_tile * shape::rows, left = of.n - first;
  tile const written{at.group, first, left < shape::rows ? static_cast<int>(left) : shape::rows, at.column_tile};
  hand_over<1, shape::threads>(staged, written, of.k,
                               store_matrix<float>{of.out.data, of.out.group_stride, of.out.row_stride, of.accumulate},
                               static_cast<int>(threadIdx.x));
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
