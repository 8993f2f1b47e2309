// SPDX-License-Identifier: Apache-2.0
// Grouped products by fused multiply-adds, for operands of any number types and float or double sums.
//
// Each output is one chain  acc = fma(a_k, b_k, acc)  over ascending k (m first, then k in nn; the rows of the group in
// tn) from +0, or in tn with `accumulate` from what is there: the host's order, so the host's bits. A thread holds some
// rows and columns of its block's tile; steps of the sums pass through two stages of shared memory, [k][row] and
// [k][column], while the next step is on its way in registers.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/kernels/cuda/instructions.cuh>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/find_tile.cuh>
#include <moiety/kernels/cuda/portable/product.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/cuda/tiles.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::kernels::gpu {

/// A warp's lanes stand in 8 rows of 4; each holds `ThreadRows` rows, by up to 4 adjacent ones, and `Quads` times 4 adjacent
/// columns. At least `Blocks` blocks have to fit a multiprocessor.
template <int Rows, int Columns, int Depth, int ThreadRows, int Quads, int Blocks = 1> struct fma_tile {
  static constexpr int rows = Rows, columns = Columns, depth = Depth, thread_rows = ThreadRows, quads = Quads;
  static constexpr int blocks = Blocks;
  static constexpr int adjacent_rows = ThreadRows < 4 ? ThreadRows : 4;
  static constexpr int warp_rows = 8 * thread_rows, warp_columns = 16 * quads;
  static constexpr int row_warps = rows / warp_rows, column_warps = columns / warp_columns;
  static constexpr int threads = 32 * row_warps * column_warps;
  static constexpr int a_pitch = rows + 4, b_pitch = columns + 4;
  static constexpr int stage = depth * (a_pitch + b_pitch);
  template <class S> using staged = staged_tile<S, rows, columns>;
  template <class S> static constexpr std::int64_t stages_bytes = 2 * stage* static_cast<std::int64_t>(sizeof(S));
  template <class S>
  static constexpr std::int64_t shared_bytes = stages_bytes<S> > staged<S>::bytes ? stages_bytes<S> : staged<S>::bytes;
};
/// A float product reads 16 values for 64 multiply-adds here; of double that would not fit the registers.
template <class S>
using large_fma_tile = std::conditional_t<sizeof(S) == 4, fma_tile<128, 128, 8, 8, 2, 2>, fma_tile<64, 128, 16, 4, 2>>;
using middle_fma_tile = fma_tile<32, 64, 32, 4, 1>;         // where large ones leave multiprocessors without work
using middle_matrix_fma_tile = fma_tile<32, 64, 64, 2, 1>;  // the same of sums over rows, where blocks are few
using small_fma_tile = fma_tile<16, 32, 64, 1, 1>;          // where these leave some without

/// Bytes of one load where 4 elements are loaded.
template <class T> inline constexpr int quad_bytes = sizeof(column_vector<T, 4>);

/// To a multiple of 16 bytes.
template <class S> __device__ inline void store_quad(S* to, S const (&values)[4]) {
  constexpr int width = 16 / static_cast<int>(sizeof(S));
  struct alignas(16) vector {
    several<S, width> values;
  };
  MOIETY_REGISTERS
  for (int i = 0; i < 4 / width; ++i) {
    vector part;
    MOIETY_REGISTERS
    for (int j = 0; j < width; ++j) part.values[j] = values[i * width + j];
    reinterpret_cast<vector*>(to)[i] = part;
  }
}

__device__ inline int quad_count(std::int64_t left) { return left >= 4 ? 4 : left > 0 ? static_cast<int>(left) : 0; }

/// An operand whose rows run along k, on its way to [k][outer]: a thread carries quads of k of some rows. Wide: they lie
/// aligned, and the number of k is a multiple of 4.
template <class T, int Outer, int Depth, int Threads> struct along_k {
  static constexpr int quads = Outer * Depth / 4 / Threads, row_quads = Depth / 4;
  several<T const*, quads> from;  // null where there is no row
  several<held_columns<T, 4>, quads> held;

  __device__ static int row(int i) { return (static_cast<int>(threadIdx.x) + i * Threads) / row_quads; }
  __device__ static int k(int i) { return (static_cast<int>(threadIdx.x) + i * Threads) % row_quads * 4; }

  /// f(row) is the row's start, or null.
  template <class Function> __device__ void aim(Function const& f) {
    MOIETY_REGISTERS
    for (int i = 0; i < quads; ++i) from[i] = f(row(i));
  }
  __device__ void fetch(std::int64_t k0, std::int64_t extent, bool wide) {
    auto const exists = [&](int i) { return from[i] != nullptr && k0 + k(i) < extent; };
    if (wide) {
      MOIETY_REGISTERS
      for (int i = 0; i < quads; ++i) held[i].load(exists(i) ? from[i] + k0 + k(i) : nullptr);
    } else {
      MOIETY_REGISTERS
      for (int i = 0; i < quads; ++i)
        held[i].gather(exists(i) ? from[i] + k0 + k(i) : nullptr, exists(i) ? quad_count(extent - k0 - k(i)) : 0);
    }
  }
  template <class S> __device__ void put(S* to, int pitch) const {
    MOIETY_REGISTERS
    for (int i = 0; i < quads; ++i) {
      MOIETY_REGISTERS
      for (int j = 0; j < 4; ++j) to[(k(i) + j) * pitch + row(i)] = static_cast<S>(held[i].element(j));
    }
  }
};

/// An operand that has a row for each k. Wide: the same of its columns.
template <class T, int Outer, int Depth, int Threads> struct across_k {
  static constexpr int quads = Outer * Depth / 4 / Threads, row_quads = Outer / 4;
  several<held_columns<T, 4>, quads> held;

  __device__ static int k(int i) { return (static_cast<int>(threadIdx.x) + i * Threads) / row_quads; }
  __device__ static int col(int i) { return (static_cast<int>(threadIdx.x) + i * Threads) % row_quads * 4; }

  /// f(i) is the start of the row of k(i), of which `depth` exist; columns of it from `first` on, of `cols`.
  template <class Function>
  __device__ void fetch(std::int64_t depth, std::int64_t first, std::int64_t cols, bool wide, Function const& f) {
    if (wide) {
      MOIETY_REGISTERS
      for (int i = 0; i < quads; ++i)
        held[i].load(k(i) < depth && first + col(i) < cols ? f(i) + first + col(i) : nullptr);
    } else {
      MOIETY_REGISTERS
      for (int i = 0; i < quads; ++i)
        held[i].gather(f(i) + first + col(i), k(i) < depth ? quad_count(cols - first - col(i)) : 0);
    }
  }
  template <class S> __device__ void put(S* to, int pitch) const {
    MOIETY_REGISTERS
    for (int i = 0; i < quads; ++i) {
      S values[4];
      MOIETY_REGISTERS
      for (int j = 0; j < 4; ++j) values[j] = static_cast<S>(held[i].element(j));
      store_quad(to + k(i) * pitch + col(i), values);
    }
  }
};

/// Rows of a group, for sums over rows. Rows in order are stepped through; of others, the numbers of the next step's are read a
/// step ahead.
template <class T, int Outer, int Depth, int Threads> struct across_rows {
  using tile_type = across_k<T, Outer, Depth, Threads>;
  tile_type tile;
  rows_of<T> of;
  std::int64_t first, last;
  several<T const*, tile_type::quads> in_order;
  several<std::int32_t, tile_type::quads> next;

  __device__ across_rows(rows_of<T> const& rows, std::int64_t begin, std::int64_t end)
      : of(rows), first(begin), last(end) {
    if (first >= last) return;  // there may be no memory then
    MOIETY_REGISTERS
    for (int i = 0; i < tile.quads; ++i) in_order[i] = of.data + (first + tile.k(i)) * of.stride;
    number();
  }
  __device__ void number() {
    if (of.index == nullptr) return;
    MOIETY_REGISTERS
    for (int i = 0; i < tile.quads; ++i) next[i] = first + tile.k(i) < last ? of.index[first + tile.k(i)] : 0;
  }
  __device__ void fetch(std::int64_t col, std::int64_t cols, bool wide) {
    if (of.index == nullptr) {
      tile.fetch(last - first, col, cols, wide, [&](int i) { return in_order[i]; });
      MOIETY_REGISTERS
      for (int i = 0; i < tile.quads; ++i) in_order[i] += Depth * of.stride;
    } else {
      tile.fetch(last - first, col, cols, wide, [&](int i) { return of.data + next[i] * of.stride; });
    }
    first += Depth;
    number();
  }
};

/// Whether the operands can be read in whole quads.
struct wide_loads {
  bool a, b;
};

template <class T, class Operand>
__device__ inline void aim_at_rows(Operand& to, rows_of<T> const& of, tile const& at) {
  to.aim([&](int row) -> T const* {
    return row < at.rows ? of.data + row_number(of, at.first_row + row) * of.stride : nullptr;
  });
}

/// Operands of rows times stored matrices [n x k].
template <class A, class B, class Shape, int M> struct fma_nt {
  using shape = Shape;
  using product = rows_product<A, B, 1, M>;
  static constexpr int matrices = M, width = matrix_columns(shape::columns, M);

  along_k<A, shape::rows, shape::depth, shape::threads> a;
  along_k<B, shape::columns, shape::depth, shape::threads> b;
  wide_loads wide;
  std::int64_t k, k0 = 0;
  std::int64_t steps;

  static wide_loads whole_quads(std::int64_t, std::int64_t k) { return {k % 4 == 0, k % 4 == 0}; }
  __device__ fma_nt(product const& of, tile const& at, wide_loads loads)
      : wide(loads), k(of.k), steps(tiles_of(of.k, shape::depth)) {
    aim_at_rows(a, of.a[0], at);
    b.aim([&](int row) -> B const* {
      int const m = row / width;
      std::int64_t const col = at.column_tile * width + row % width;
      if (m >= M || col >= of.n) return nullptr;
      return of.w[m].data + at.group * of.w[m].group_stride + col * of.w[m].row_stride;
    });
  }
  /// The number of k that it has fetched.
  __device__ int fetch() {
    a.fetch(k0, k, wide.a);
    b.fetch(k0, k, wide.b);
    std::int64_t const left = k - k0;
    k0 += shape::depth;
    return left < shape::depth ? static_cast<int>(left) : shape::depth;
  }
  template <class S> __device__ void put(S* stage) const {
    a.put(stage, shape::a_pitch);
    b.put(stage + shape::depth * shape::a_pitch, shape::b_pitch);
  }
};

/// Operands of M times rows times matrices [k x n], in one sum.
template <class A, class B, class Shape, int M> struct fma_nn {
  using shape = Shape;
  using product = rows_product<A, B, M, M>;
  static constexpr int matrices = 1, width = shape::columns;

  product const& of;
  tile const& at;
  along_k<A, shape::rows, shape::depth, shape::threads> a;
  across_k<B, shape::columns, shape::depth, shape::threads> b;
  B const* w;
  std::int64_t w_stride;
  wide_loads wide;
  std::int64_t k0 = 0;
  int m = 0;
  std::int64_t steps;

  static wide_loads whole_quads(std::int64_t n, std::int64_t k) { return {k % 4 == 0, n % 4 == 0}; }
  __device__ fma_nn(product const& with, tile const& where, wide_loads loads)
      : of(with), at(where), wide(loads), steps(M * tiles_of(with.k, shape::depth)) {
    aim();
  }
  __device__ void aim() {
    aim_at_rows(a, of.a[m], at);
    w_stride = of.w[m].row_stride;
    w = of.w[m].data + at.group * of.w[m].group_stride;
  }
  __device__ int fetch() {
    if (k0 >= of.k) {
      k0 = 0;
      ++m;
      aim();
    }
    std::int64_t const left = of.k - k0;
    a.fetch(k0, of.k, wide.a);
    b.fetch(left, at.column_tile * width, of.n, wide.b, [&](int i) { return w + (k0 + b.k(i)) * w_stride; });
    k0 += shape::depth;
    return left < shape::depth ? static_cast<int>(left) : shape::depth;
  }
  template <class S> __device__ void put(S* stage) const {
    a.put(stage, shape::a_pitch);
    b.put(stage + shape::depth * shape::a_pitch, shape::b_pitch);
  }
};

/// Operands of sums over a group's rows.
template <class A, class B, class S, class Shape> struct fma_tn {
  using shape = Shape;
  using product = matrix_product<A, B, S>;

  across_rows<A, shape::rows, shape::depth, shape::threads> a;
  across_rows<B, shape::columns, shape::depth, shape::threads> b;
  wide_loads wide;
  std::int64_t n, k, row, col;
  std::int64_t steps;

  static wide_loads whole_quads(std::int64_t n, std::int64_t k) { return {n % 4 == 0, k % 4 == 0}; }
  __device__ fma_tn(product const& of, matrix_tile const& at, wide_loads loads)
      : a(of.a, of.rows.first(at.group), of.rows.first(at.group + 1)),
        b(of.b, of.rows.first(at.group), of.rows.first(at.group + 1)),
        wide(loads),
        n(of.n),
        k(of.k),
        row(at.row_tile * shape::rows),
        col(at.column_tile * shape::columns),
        steps(tiles_of(of.rows.count(at.group), shape::depth)) {}
  __device__ int fetch() {
    std::int64_t const left = a.last - a.first;
    a.fetch(row, n, wide.a);
    b.fetch(col, k, wide.b);
    return left < shape::depth ? static_cast<int>(left) : shape::depth;
  }
  __device__ void put(S* stage) const {
    a.tile.put(stage, shape::a_pitch);
    b.tile.put(stage + shape::depth * shape::a_pitch, shape::b_pitch);
  }
};

/// The sums of a thread of its block's tile: rows from `row` on, columns `col` + 16 quad ....
/// Lanes that differ in bit 0 read the same rows, lanes that differ in bit 1 the same columns: shared memory then serves the
/// 16-byte reads of half a warp at once.
template <class S, class Shape> struct thread_sums {
  static constexpr int adjacent = Shape::adjacent_rows;
  several<several<S[4], Shape::quads>, Shape::thread_rows> values;
  int row, col;

  __device__ thread_sums() {
    int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    row = warp / Shape::column_warps * Shape::warp_rows + (lane / 8 * 2 + lane / 2 % 2) * adjacent;
    col = warp % Shape::column_warps * Shape::warp_columns + (lane / 4 % 2 * 2 + lane % 2) * 4;
    each([](S& value, int, int) { value = 0; });
  }
  /// The tile's row of the thread's row i.
  __device__ int row_of(int i) const { return row + i / adjacent * 8 * adjacent + i % adjacent; }

  /// f(value, row, col) for each sum.
  template <class Function> __device__ void each(Function const& f) {
    MOIETY_REGISTERS
    for (int i = 0; i < Shape::thread_rows; ++i) {
      MOIETY_REGISTERS
      for (int j = 0; j < Shape::quads * 4; ++j) f(values[i][j / 4][j % 4], row_of(i), col + j / 4 * 16 + j % 4);
    }
  }
  /// Adds `depth` products of a stage in ascending k, what one needs on its way while the one before is added.
  __device__ void add_stage(S const* stage, int depth) {
    S const *const a = stage + row, *const b = stage + Shape::depth * Shape::a_pitch + col;
    factors next;
    if (depth == Shape::depth) {
      next.load(a, b);
      MOIETY_REGISTERS
      for (int k = 1; k <= Shape::depth; ++k) {
        factors const now = next;
        if (k < Shape::depth) next.load(a + k * Shape::a_pitch, b + k * Shape::b_pitch);
        add(now);
      }
    } else {
      for (int k = 0; k < depth; ++k) {
        next.load(a + k * Shape::a_pitch, b + k * Shape::b_pitch);
        add(next);
      }
    }
  }
  __device__ void store(typename Shape::template staged<S> const& staged) const {
    MOIETY_REGISTERS
    for (int i = 0; i < Shape::thread_rows; ++i) {
      MOIETY_REGISTERS
      for (int j = 0; j < Shape::quads; ++j) store_quad(staged.at(row_of(i), col + j * 16), values[i][j]);
    }
  }

 private:
  /// What a thread reads of one k.
  struct factors {
    struct alignas(adjacent * sizeof(S) < 16 ? adjacent * sizeof(S) : 16) rows_vector {
      several<S, adjacent> values;
    };
    struct alignas(16) quad_vector {
      S values[4];
    };
    several<rows_vector, Shape::thread_rows / adjacent> rows;
    several<quad_vector, Shape::quads> columns;

    __device__ void load(S const* a, S const* b) {
      MOIETY_REGISTERS
      for (int i = 0; i < Shape::thread_rows / adjacent; ++i)
        rows[i] = *reinterpret_cast<rows_vector const*>(a + i * 8 * adjacent);
      MOIETY_REGISTERS
      for (int i = 0; i < Shape::quads; ++i) columns[i] = *reinterpret_cast<quad_vector const*>(b + i * 16);
    }
  };
  __device__ void add(factors const& of) {
    MOIETY_REGISTERS
    for (int i = 0; i < Shape::thread_rows; ++i) {
      S const factor = of.rows[i / adjacent].values[i % adjacent];
      MOIETY_REGISTERS
      for (int j = 0; j < Shape::quads * 4; ++j)
        values[i][j / 4][j % 4] = fma(factor, of.columns[j / 4].values[j % 4], values[i][j / 4][j % 4]);
    }
  }
};

/// Adds all steps of the operands to the sums, and leaves them in shared memory for every thread to read.
template <class S, class Operands>
__device__ typename Operands::shape::template staged<S> fma_sums(Operands& operands,
                                                                 thread_sums<S, typename Operands::shape>& sums,
                                                                 S* shared) {
  using shape = typename Operands::shape;
  int depth = operands.steps > 0 ? operands.fetch() : 0;
  for (std::int64_t step = 0; step < operands.steps; ++step) {
    S* const stage = shared + (step % 2) * shape::stage;
    operands.put(stage);
    __syncthreads();  // this stage is full; the other has been read
    int const fetched = step + 1 < operands.steps ? operands.fetch() : 0;
    sums.add_stage(stage, depth);
    depth = fetched;
  }
  __syncthreads();
  typename shape::template staged<S> const staged{shared};
  sums.store(staged);
  __syncthreads();
  return staged;
}

/// One tile of grouped_gemm_nt or _nn.
template <class S, class Operands, class Epilogue>
__global__ void __launch_bounds__(Operands::shape::threads, Operands::shape::blocks)
    fma_rows(typename Operands::product const __grid_constant__ of, wide_loads const wide,
             Epilogue const __grid_constant__ epilogue) {
  using shape = typename Operands::shape;
  tile const at = warp_find_tile(of.rows, blockIdx.x, shape::rows, tiles_of(of.n, Operands::width));
  if (at.rows == 0) return;
  Operands operands(of, at, wide);
  thread_sums<S, shape> sums;
  auto const staged = fma_sums(operands, sums, reinterpret_cast<S*>(dynamic_shared()));
  hand_over<Operands::matrices, shape::threads>(staged, at, of.n, epilogue, static_cast<int>(threadIdx.x));
}

/// One tile of grouped_gemm_tn.
template <class S, class Operands>
__global__ void __launch_bounds__(Operands::shape::threads, Operands::shape::blocks)
    fma_matrix(typename Operands::product const __grid_constant__ of, wide_loads const wide) {
  using shape = typename Operands::shape;
  matrix_tile const at = find_matrix_tile(blockIdx.x, tiles_of(of.n, shape::rows), tiles_of(of.k, shape::columns));
  if (of.accumulate && of.rows.count(at.group) == 0) return;
  std::int64_t const first = at.row_tile * shape::rows, left = of.n - first, col = at.column_tile * shape::columns;
  thread_sums<S, shape> sums;
  if (of.accumulate) {
    S const* const there = of.out.data + at.group * of.out.group_stride + first * of.out.row_stride + col;
    sums.each([&](S& value, int i, int j) {
      if (i < left && col + j < of.k) value = there[i * of.out.row_stride + j];
    });
  }
  Operands operands(of, at, wide);
  auto const staged = fma_sums(operands, sums, reinterpret_cast<S*>(dynamic_shared()));
  tile const written{at.group, first, left < shape::rows ? static_cast<int>(left) : shape::rows, at.column_tile};
  hand_over<1, shape::threads>(staged, written, of.k,
                               store_matrix<S>{of.out.data, of.out.group_stride, of.out.row_stride, false},
                               static_cast<int>(threadIdx.x));
}

}  // namespace moiety::inline MOIETY_ABI::kernels::gpu
