// SPDX-License-Identifier: Apache-2.0
// Grouped products of bf16, fp16, or e4m3 (nt only) by wgmma, with float sums: what portable/grouped_gemm.cuh and
// e4m3_gemm.cuh hand over to where they can.
//
//   multiply_nt, multiply_nn, multiply_tn    true if the product was put into the stream, false if it is not for here
//
// They take what a program that was compiled for sm_90a multiplies on such a device, of operands whose rows begin at
// multiples of 16 bytes and whose matrices the copy engine can address (mappable), and which have an element.
//
// A launch has a block for each multiprocessor. Tiles of 128 rows (tile_shape.hpp) are numbered as tiles.hpp says; block b
// makes tiles b, b + blocks, ... One warpgroup fills the ring, two multiply, and others hand over, where sums are staged;
// where the copy engine brings all rows, one warp fills the ring and the other three of its warpgroup hand over:
//
//   empty[s]   the phase ends when all warps that multiply have done with stage s
//   full[s]    the phase ends when the stage's copies are there. The first stage of a tile brings its task too
//   zeroed     the phase ends when all rows of a stage that are not the group's are zeros
//   staged     the phase ends when a tile's sums are staged, and its task with them
//   handed     the phase ends when they are handed over
//
// Stored matrices come by the copy engine, in boxes; so do rows that lie one after another, of which rows_bound lie in
// memory (the last tile of a group reads some of the next, and hands nothing over of them; in tn the last stage's are
// zeroed). Rows that are gathered come by cp.async, with zeros where there is none, published to the products by the
// threads that waited for them: slower, so that it pays to gather them once before. An output is summed in ascending k,
// 16 at a time (m first, then k; in tn over the rows of the group), the rest of the last 64 being zeros. Of e4m3, each
// 128 k are summed from zero, 32 at a time, and added in float, while the other warpgroup's products are made.
#pragma once

#include <moiety/backend/device_memory.cuh>
#include <moiety/core/config.hpp>
#include <moiety/kernels/cuda/fragments.hpp>
#include <moiety/kernels/cuda/instructions.cuh>
#include <moiety/kernels/cuda/portable/find_tile.cuh>
#include <moiety/kernels/cuda/portable/product.cuh>
#include <moiety/kernels/cuda/portable/tensor_core_gemm.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/cuda/sm90/instructions.cuh>
#include <moiety/kernels/cuda/sm90/matrices.hpp>
#include <moiety/kernels/cuda/sm90/staged_sums.cuh>
#include <moiety/kernels/cuda/sm90/tensor_map.cuh>
#include <moiety/kernels/cuda/sm90/tensor_map.hpp>
#include <moiety/kernels/cuda/sm90/tile_shape.hpp>
#include <moiety/kernels/cuda/tiles.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

/// Of an epilogue that scales sums and hands them to another, the threads that multiply do the scaling.
template <class Epilogue>
concept scales_sums = requires {
  typename Epilogue::inner_type;
};
template <class Epilogue> __device__ inline auto const& scaled_for(Epilogue const& epilogue) {
  if constexpr (scales_sums<Epilogue>)
    return epilogue.inner;
  else
    return epilogue;
}

/// As what an epilogue has its sums staged: what it would round them to, else as float; not at all where it adds to matrices,
/// whose floats it writes by pairs of columns.
template <class Epilogue> struct staging_of { using type = float; };
template <class Epilogue>
requires requires { typename Epilogue::rounded; }
struct staging_of<Epilogue> {
  using type = typename Epilogue::rounded;
};
template <class S> struct staging_of<gpu::store_matrix<S>> { using type = void; };
template <scales_sums Epilogue> struct staging_of<Epilogue> : staging_of<typename Epilogue::inner_type> {};
template <class Epilogue> using staging = typename staging_of<Epilogue>::type;
template <class Epilogue> inline constexpr bool stages_sums = !std::same_as<staging<Epilogue>, void>;
template <class Epilogue> inline constexpr bool stages_floats = std::same_as<staging<Epilogue>, float>;

/// Columns of tiles: so many that there is room for sums that are staged as float; and in registers for those of a step
/// apart.
template <class T, class Epilogue>
inline constexpr int tile_columns = stages_floats<Epilogue> || gpu::sums_steps_apart<T> ? 128 : 256;
/// Operands whose rows the copy engine brings leave three warps of the first warpgroup to hand over what is staged rounded.
template <class Operands, class Epilogue>
using block_of = block_shape<!stages_sums<Epilogue>    ? 0
                             : stages_floats<Epilogue> ? gpu::sums_steps_apart<typename Operands::T> ? 4 : 8
                             : Operands::copies        ? 4
                                                       : 3>;
/// Of one instruction: its sums have to fit into the registers that a thread of the block starts with.
template <class Operands, class Epilogue, class T = typename Operands::T>
inline constexpr int instruction_columns =
    block_of<Operands, Epilogue>::starting_registers < 168 ? 128 : tile_columns<T, Epilogue>;

template <class Sum> inline constexpr int sum_bytes = static_cast<int>(sizeof(Sum));
template <> inline constexpr int sum_bytes<void> = 0;
template <class T, class Epilogue> using shape_of = tile_shape<tile_columns<T, Epilogue>, sum_bytes<staging<Epilogue>>>;

// Other architectures get a kernel that no block of so many threads can be launched of: runs_here() asks for that.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <class Operands, class Epilogue> inline constexpr int launchable_threads = 1;
#else
template <class Operands, class Epilogue>
inline constexpr int launchable_threads = block_of<Operands, Epilogue>::threads;
#endif

/// Whether this source is compiled for devices of compute capability 9.0 among others; if not, kernels are not made.
#if defined(__CUDA_ARCH_LIST__)
constexpr bool compiled_for_90() {
  for (int const architecture : {__CUDA_ARCH_LIST__})
    if (architecture == 900) return true;
  return false;
}
#else
constexpr bool compiled_for_90() { return false; }
#endif

/// What all lanes of a warp have, so that the compiler knows: it keeps what it makes of it in registers of the warp.
template <class V> __device__ inline V uniform(V value) { return __shfl_sync(0xffffffffu, value, 0); }

/// What lies behind the stages of a ring.
template <int Stages> struct ring_control {
  barrier full[Stages], empty[Stages], zeroed, staged, handed;
  tile_task tasks[Stages], staged_task;
};

/// A thread's view of the ring, and where it is in it.
template <class Shape> struct ring {
  using control_type = ring_control<Shape::stages>;
  static_assert(sizeof(control_type) <= control_bytes);
  std::byte* stages;
  std::uint32_t first_address;
  ring_place at;

  __device__ explicit ring(std::byte* shared) {
    stages = shared + (0u - shared_address(shared)) % static_cast<unsigned>(tile_alignment);
    first_address = uniform(shared_address(stages));
  }
  __device__ control_type* control() const { return reinterpret_cast<control_type*>(staged() + Shape::staged_bytes); }
  __device__ std::byte* staged() const { return stages + Shape::ring_bytes; }
  /// One thread, before the others know of the ring.
  __device__ void begin(unsigned arrivals_to_fill, unsigned handing_warps) const {
    MOIETY_REGISTERS
    for (int stage = 0; stage < Shape::stages; ++stage) {
      init_barrier(control()->full + stage, arrivals_to_fill);
      init_barrier(control()->empty + stage, multiplying_warpgroups * warpgroup_threads / 32);
    }
    init_barrier(&control()->zeroed, multiplying_warpgroups * warpgroup_threads / 32);
    init_barrier(&control()->staged, multiplying_warpgroups * warpgroup_threads / 32);
    if (handing_warps > 0) init_barrier(&control()->handed, handing_warps);
    publish_barriers();
  }
  __device__ std::byte* stage() const { return stages + at.stage * Shape::stage_bytes; }
  __device__ std::uint32_t address() const {
    return first_address + static_cast<std::uint32_t>(at.stage) * std::uint32_t{Shape::stage_bytes};
  }
  __device__ barrier* full() const { return control()->full + at.stage; }
  __device__ barrier* empty() const { return control()->empty + at.stage; }
  __device__ tile_task& told() const { return control()->tasks[at.stage]; }
  __device__ void wait_full() const { wait_phase(full(), at.parity); }
  __device__ void wait_empty() const { wait_phase(empty(), at.parity ^ 1u); }
  __device__ void advance() { at.advance(Shape::stages); }
};

/// Once for a warp, for what all its lanes did before.
__device__ inline void arrive_together(barrier* b) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(b);
}

/// The matrices of a product, and its rows where they are not gathered.
template <int Rows, int Matrices> struct product_maps {
  gpu::several<tensor_map, Matrices> stored;
  gpu::several<tensor_map, Rows> rows;
};

/// What boxes bring to a stage: so many columns of B, and A where rows are mapped.
template <int Columns, bool Mapped>
inline constexpr unsigned mapped_bytes_of = unsigned{Columns * gpu::tile_row_bytes + (Mapped ? tile_a_bytes : 0)};

/// Tile `number` of a product whose tiles are `width` columns wide, summed over `terms` times k. All lanes of a warp together.
template <class Product>
__device__ inline tile_task find_rows(Product const& of, std::int64_t number, int width, int terms) {
  gpu::tile const at = gpu::warp_find_tile(of.rows, number, tile_rows, gpu::tiles_of(of.n, width));
  return {static_cast<int>(at.group), static_cast<int>(at.first_row), at.rows, static_cast<int>(at.column_tile),
          terms * static_cast<int>(gpu::tiles_of(of.k, gpu::depth_of<typename Product::A>))};
}

/// The rows of a tile on their way by cp.async: of each of 8 rows, a thread copies one of the 8 chunks of a stage.
template <class T> struct copied_rows {
  static constexpr int count = tile_rows * 8 / warpgroup_threads, step = warpgroup_threads / 8;
  gpu::several<int, count> numbers;  // -1 where there is none

  __device__ static int row() { return static_cast<int>(threadIdx.x) / 8; }
  __device__ void aim(rows_of<T> const& of, std::int64_t first_row, int rows) {
    MOIETY_REGISTERS
    for (int i = 0; i < count; ++i)
      numbers[i] = row() + i * step < rows ? static_cast<int>(gpu::row_number(of, first_row + row() + i * step)) : -1;
  }
  __device__ void copy(std::byte* to, rows_of<T> const& of, int k0, std::int64_t k) const {
    int const chunk = static_cast<int>(threadIdx.x) % 8;
    std::int64_t const first = k0 + chunk * gpu::chunk_of<T>;
    int const bytes = gpu::chunk_count<T>(k - first) * static_cast<int>(sizeof(T));
    MOIETY_REGISTERS
    for (int i = 0; i < count; ++i)
      copy_async_16(to + gpu::chunk_offset(row(), chunk) + i * step * gpu::tile_row_bytes,
                    of.data + (numbers[i] < 0 ? 0 : numbers[i] * of.stride + first), numbers[i] < 0 ? 0 : bytes);
  }
};

/// Rows times stored matrices [n x k]: M of them side by side.
template <class T_, class Shape, int M, bool Mapped, class Scales> struct rows_nt {
  using T = T_;
  using product = gpu::rows_product<T, T, 1, M, Scales>;
  using maps = product_maps<1, M>;
  using shape = Shape;
  static constexpr int matrices = M, width = gpu::matrix_columns(Shape::columns, M);
  static constexpr tile_order a_order = tile_order::k_first, b_order = tile_order::k_first;
  static constexpr int box_rows = width, copying_registers = 56;
  static constexpr bool copies = !Mapped;
  static constexpr unsigned mapped_bytes = mapped_bytes_of<M * width, Mapped>;

  product const& of;
  maps const& from;
  int col, group, first_row, k0 = 0;
  copied_rows<T> a;

  __device__ static std::int64_t columns(product const& of) { return of.n; }
  __device__ static tile_task find(product const& of, std::int64_t number) { return find_rows(of, number, width, 1); }
  __device__ rows_nt(product const& given, maps const& with, tile_task const& what)
      : of(given), from(with), col(what.column_tile * width), group(what.group), first_row(what.first_row) {
    if constexpr (copies) a.aim(of.a[0], first_row, what.rows);
  }
  /// One thread, of whose barrier the phase expects mapped_bytes.
  __device__ void load(std::byte* stage, barrier* full) const {
    if constexpr (Mapped) load_box(stage, from.rows[0], full, k0, first_row);
    MOIETY_REGISTERS
    for (int m = 0; m < M; ++m)
      load_box(stage + tile_a_bytes + m * width * gpu::tile_row_bytes, from.stored[m], full, k0, col, group);
  }
  /// All threads of the warpgroup.
  __device__ void copy(std::byte* stage) const { a.copy(stage, of.a[0], k0, of.k); }
  __device__ void advance() { k0 += gpu::depth_of<T>; }
};

/// M times rows times stored matrices [k x n], in one sum.
template <class T_, class Shape, int M, bool Mapped> struct rows_nn {
  using T = T_;
  using product = gpu::rows_product<T, T, M, M>;
  using maps = product_maps<M, M>;
  using shape = Shape;
  static constexpr int matrices = 1, width = Shape::columns;
  static constexpr tile_order a_order = tile_order::k_first, b_order = tile_order::outer_first;
  static constexpr int box_rows = gpu::tile_depth, copying_registers = Mapped || M == 1 ? 56 : 72;
  static constexpr bool copies = !Mapped;
  static constexpr unsigned mapped_bytes = mapped_bytes_of<width, Mapped>;

  product const& of;
  maps const& from;
  int col, group, first_row, rows, m = 0, k0 = 0;
  copied_rows<T> a;

  __device__ static std::int64_t columns(product const& of) { return of.n; }
  __device__ static tile_task find(product const& of, std::int64_t number) { return find_rows(of, number, width, M); }
  __device__ rows_nn(product const& given, maps const& with, tile_task const& what)
      : of(given),
        from(with),
        col(what.column_tile * width),
        group(what.group),
        first_row(what.first_row),
        rows(what.rows) {
    if constexpr (copies) a.aim(of.a[0], first_row, rows);
  }
  __device__ void load(std::byte* stage, barrier* full) const {
    if constexpr (Mapped) load_box(stage, from.rows[m], full, k0, first_row);
    MOIETY_REGISTERS
    for (int panel = 0; panel < width / 64; ++panel)
      load_box(stage + tile_a_bytes + panel * gpu::panel_bytes, from.stored[m], full, col + panel * 64, k0, group);
  }
  __device__ void copy(std::byte* stage) const { a.copy(stage, of.a[m], k0, of.k); }
  __device__ void advance() {
    k0 += gpu::tile_depth;
    if (M == 1 || k0 < of.k || m + 1 == M) return;
    k0 = 0;
    ++m;
    if constexpr (copies) a.aim(of.a[m], first_row, rows);
  }
};

/// Sums over a group's rows. Gathered ones come by cp.async, with zeros behind the last. Mapped: boxes bring what lies behind,
/// too, and the products zero it.
template <class T_, class Shape, bool Mapped> struct rows_tn {
  using T = T_;
  using product = gpu::matrix_product<T, T, float>;
  struct maps {
    gpu::several<tensor_map, Mapped ? 2 : 1> rows;
  };
  using shape = Shape;
  static constexpr int matrices = 1, width = Shape::columns;
  static constexpr tile_order a_order = tile_order::outer_first, b_order = tile_order::outer_first;
  static constexpr int box_rows = gpu::tile_depth, copying_registers = Mapped ? 56 : 88;
  static constexpr bool copies = !Mapped, zeroes = Mapped;
  static constexpr unsigned mapped_bytes = Mapped ? unsigned{shape::stage_bytes} : 0;
  using operand_rows = gpu::summed_rows<T, warpgroup_threads>;

  operand_rows a, b;
  maps const& from;
  std::int64_t n, k, row, col;

  __device__ static std::int64_t columns(product const& of) { return of.k; }
  /// A group without rows has one step of zeros, or none where there is nothing to write.
  __device__ static tile_task find(product const& of, std::int64_t number) {
    gpu::matrix_tile const at =
        gpu::find_matrix_tile(number, gpu::tiles_of(of.n, tile_rows), gpu::tiles_of(of.k, width));
    if (at.group >= of.rows.groups) return {};
    std::int64_t const first = at.row_tile * tile_rows, left = of.n - first, count = of.rows.count(at.group);
    int const steps = static_cast<int>(gpu::tiles_of(count, gpu::tile_depth));
    return {static_cast<int>(at.group),
            static_cast<int>(first),
            left < tile_rows ? static_cast<int>(left) : tile_rows,
            static_cast<int>(at.column_tile),
            steps == 0 && !of.accumulate ? 1 : steps,
            static_cast<int>(count) - (steps > 0 ? steps - 1 : 0) * gpu::tile_depth};
  }
  __device__ rows_tn(product const& of, maps const& with, tile_task const& what)
      : a(of.a, of.rows.first(what.group), of.rows.first(what.group + 1)),
        b(of.b, of.rows.first(what.group), of.rows.first(what.group + 1)),
        from(with),
        n(of.n),
        k(of.k),
        row(what.first_row),
        col(std::int64_t{what.column_tile} * width) {}
  __device__ void load(std::byte* stage, barrier* full) const {
    if constexpr (Mapped) {
      int const first = static_cast<int>(b.first);
      MOIETY_REGISTERS
      for (int outer = 0; outer < tile_rows; outer += 64)
        load_box(stage + outer_offset(outer), from.rows[0], full, static_cast<int>(row) + outer, first);
      MOIETY_REGISTERS
      for (int outer = 0; outer < width; outer += 64)
        load_box(stage + tile_a_bytes + outer_offset(outer), from.rows[1], full, static_cast<int>(col) + outer, first);
    }
  }
  __device__ void copy(std::byte* stage) const {
    fill(stage, a, row, n);
    MOIETY_REGISTERS
    for (int outer = 0; outer < width; outer += 128)
      fill(stage + tile_a_bytes + outer_offset(outer), b, col + outer, k);
  }
  __device__ void advance() {
    a.first += gpu::tile_depth, b.first += gpu::tile_depth;
    if constexpr (copies) a.number(), b.number();
  }

 private:
  __device__ static void fill(std::byte* to, operand_rows const& from, std::int64_t first, std::int64_t columns) {
    operand_rows::tile_type::template fill<true>(to, from.last - from.first, first, columns,
                                                 [&](int i) { return from.of.data + from.next[i] * from.of.stride; });
  }
};

template <class Operands>
concept zeroes_rows = requires {
  requires Operands::zeroes;
};

/// How many arrivals say that a stage is full: a warp's each whose copies are there, and one that announces boxes.
template <class Operands>
inline constexpr unsigned arrivals_to_fill = (Operands::copies ? warpgroup_threads / 32 : 0) +
                                             (Operands::mapped_bytes != 0 ? 1 : 0);

/// Once this warp's copies but those of the `Youngest` last stages are there.
template <int Youngest> __device__ inline void arrive_with_copies(barrier* full) {
  wait_copies<Youngest>();
  publish_writes();
  arrive_together(full);
}

/// What the copying warpgroup does: fills stages tile after tile, one stage's copies under way while the next begin. Without
/// copies, its first warp does.
template <class Operands>
__device__ inline void fill_stages(ring<typename Operands::shape> to, typename Operands::product const& of,
                                   typename Operands::maps const& maps) {
  bool const leads = threadIdx.x == 0;
  if (!Operands::copies && threadIdx.x >= 32) return;
  for (unsigned number = blockIdx.x;; number += gridDim.x) {
    tile_task const what = Operands::find(of, number);
    if (what.rows == 0) break;
    if (what.steps == 0) continue;
    Operands operands(of, maps, what);
    [[maybe_unused]] barrier* copied = nullptr;
    for (int step = 0; step < what.steps; ++step) {
      to.wait_empty();
      if (leads && step == 0) to.told() = what;
      if (leads && Operands::mapped_bytes != 0) {
        arrive_expecting(to.full(), Operands::mapped_bytes);
        operands.load(to.stage(), to.full());
      }
      if constexpr (Operands::copies) {
        operands.copy(to.stage());
        commit_copies();
        if (copied != nullptr) arrive_with_copies<1>(copied);
        copied = to.full();
      }
      operands.advance();
      to.advance();
    }
    if constexpr (Operands::copies) arrive_with_copies<0>(copied);
  }
  to.wait_empty();
  if (leads) to.told() = {};
  if (leads && Operands::mapped_bytes != 0) arrive(to.full());
  if (Operands::copies) arrive_together(to.full());
}

/// Zeros in the rows of an outer-first stage from `depth` on, by all threads that multiply.
template <class Shape> __device__ inline void zero_rows(ring<Shape> const& of, int depth, unsigned parity) {
  struct alignas(16) chunk {
    std::uint32_t words[4];
  };
  constexpr int chunks = gpu::tile_row_bytes / 16, columns = (tile_rows + Shape::columns) / 64 * chunks;
  constexpr int together = multiplying_warpgroups * warpgroup_threads / columns;
  int const thread = static_cast<int>(threadIdx.x) - warpgroup_threads, column = thread % columns;
  std::byte* const to = of.stage() + column / chunks * gpu::panel_bytes + column % chunks * 16;
  for (int k = depth + thread / columns; k < gpu::tile_depth && thread < together * columns; k += together)
    *reinterpret_cast<chunk*>(to + k * gpu::tile_row_bytes) = {};
  publish_writes();
  arrive_together(&of.control()->zeroed);
  wait_phase(&of.control()->zeroed, parity);
}

/// Sums the stages of a tile, rows `first` ... first + 63 of it, one step's products under way while the next begin; `Width`
/// columns by an instruction. `zeroed` is the parity of that barrier.
template <class Operands, int Width>
__device__ inline void sum_stages(ring<typename Operands::shape>& from, int first, tile_task const& what,
                                  [[maybe_unused]] unsigned& zeroed, float (&sums)[Operands::shape::columns / 2]) {
  barrier* read = nullptr;
  for (int step = 0; step < what.steps; ++step) {
    from.wait_full();
    if constexpr (zeroes_rows<Operands>)
      if (step + 1 == what.steps && what.last_depth < gpu::tile_depth) {
        zero_rows(from, what.last_depth, zeroed);
        zeroed ^= 1u;
      }
    std::uint32_t const a = from.address() + static_cast<std::uint32_t>(outer_offset(first));
    std::uint32_t const b = from.address() + std::uint32_t{tile_a_bytes};
    hold(sums);
    begin_products();
    MOIETY_REGISTERS
    for (int i = 0; i < gpu::tile_depth / step_depth; ++i) {
      MOIETY_REGISTERS
      for (int col = 0; col < Operands::shape::columns; col += Width)
        multiply_async<typename Operands::T, Width, Operands::a_order, Operands::b_order>(
            reinterpret_cast<float(&)[Width / 2]>(sums[col / 2]), operand<Operands::a_order>(a, i),
            operand<Operands::b_order>(b + static_cast<std::uint32_t>(outer_offset(col)), i), step > 0 || i > 0);
    }
    commit_products();
    hold(sums);
    if (read != nullptr) {
      wait_products<1>();
      arrive_together(read);
    }
    read = from.empty();
    from.advance();
  }
  wait_products<0>();
  hold(sums);
  arrive_together(read);
}

/// What the sums of a step are multiplied with where operands have scales: those of a thread's two rows, from row `first` of
/// the tile on, and of the columns of each matrix.
template <int M, int Width> struct step_factors {
  float of_row[2], of_columns[static_cast<std::size_t>(M)];

  __device__ step_factors(gpu::block_scales<M> const& scales, tile_task const& what, int first, int step) {
    int const thread = static_cast<int>(threadIdx.x) % warpgroup_threads, row = first + sum_element(thread, 0).row;
    MOIETY_REGISTERS
    for (int i = 0; i < 2; ++i)
      of_row[i] = row + 8 * i < what.rows ? scales.of_row(what.first_row + row + 8 * i, step) : 0.0f;
    MOIETY_REGISTERS
    for (int m = 0; m < M; ++m)
      of_columns[m] = scales.of_columns(what.group, what.column_tile, gpu::matrix_columns(Width, M),
                                        m * gpu::matrix_columns(Width, M), step);
  }
  /// Of the i-th sum of the thread; i is known at compile time.
  __device__ float at(int i) const {
    int const m = i / 4 * 8 / gpu::matrix_columns(Width, M);
    return m < M ? of_row[i % 4 / 2] * of_columns[m] : 0.0f;
  }
};
template <int Width> struct no_factors {
  __device__ no_factors(gpu::no_scales const&, tile_task const&, int, int) {}
  __device__ float at(int) const { return 1; }
};
template <class Scales, int Width> struct factors_of { using type = no_factors<Width>; };
template <int M, int Width> struct factors_of<gpu::block_scales<M>, Width> { using type = step_factors<M, Width>; };

/// The same, the products of each step summed from zero and added then. The other warpgroup's hide the wait.
template <class Operands, int Width, class Scales>
__device__ inline void sum_stages_apart(ring<typename Operands::shape>& from, int first, tile_task const& what,
                                        Scales const& scales, float (&sums)[Operands::shape::columns / 2]) {
  static_assert(Width == Operands::shape::columns);
  MOIETY_REGISTERS
  for (float& sum : sums) sum = 0;
  for (int step = 0; step < what.steps; ++step) {
    typename factors_of<Scales, Width>::type const factors(scales, what, first, step);
    from.wait_full();
    std::uint32_t const a = from.address() + static_cast<std::uint32_t>(outer_offset(first));
    std::uint32_t const b = from.address() + std::uint32_t{tile_a_bytes};
    float part[Width / 2];
    hold(part);
    begin_products();
    MOIETY_REGISTERS
    for (int i = 0; i < gpu::tile_depth / step_depth; ++i)
      multiply_async<typename Operands::T, Width, Operands::a_order, Operands::b_order>(
          part, operand<Operands::a_order>(a, i), operand<Operands::b_order>(b, i), i > 0);
    commit_products();
    hold(part);
    wait_products<0>();
    hold(part);
    arrive_together(from.empty());
    from.advance();
    MOIETY_REGISTERS
    for (int i = 0; i < Width / 2; ++i) sums[i] = fmaf(part[i], factors.at(i), sums[i]);
  }
}

/// Scales a thread's sums, of rows `first` ... first + 63 of the tile and of matrices of n columns, as the epilogue says.
template <class Operands, scales_sums Epilogue>
__device__ inline void scale(tile_task const& what, int first, std::int64_t n, Epilogue const& by,
                             float (&sums)[Operands::shape::columns / 2]) {
  auto const corner = sum_element(static_cast<int>(threadIdx.x) % warpgroup_threads, 0);
  float of_row[2];
  MOIETY_REGISTERS
  for (int half = 0; half < 2; ++half) {
    int const row = first + corner.row + 8 * half;
    of_row[half] = row < what.rows ? by.of_row(std::int64_t{what.first_row} + row) : 0.0f;
  }
  MOIETY_REGISTERS
  for (int i = 0; i < Operands::shape::columns / 2; i += i % 2 == 0 ? 1 : 3) {
    int const place = i / 4 * 8, matrix = place / Operands::width;
    std::int64_t const col =
        std::int64_t{what.column_tile} * Operands::width + place % Operands::width + corner.col + i % 2;
    float const of_column = matrix < Operands::matrices && col < n ? by.of_column(what.group, matrix, col) : 0.0f;
    sums[i] = sums[i] * of_row[0] * of_column;
    sums[i + 2] = sums[i + 2] * of_row[1] * of_column;
  }
}

/// Lets the stages of a tile pass in which this warpgroup has no rows.
template <class Shape> __device__ inline void skip_stages(ring<Shape>& from, int steps) {
  for (int step = 0; step < steps; ++step) {
    from.wait_full();
    arrive_together(from.empty());
    from.advance();
  }
}

/// What a warpgroup that multiplies does.
template <class Operands, class Epilogue>
__device__ inline void sum_tiles(ring<typename Operands::shape> from, typename Operands::product const& of,
                                 Epilogue const& epilogue) {
  using shape = typename Operands::shape;
  int const first = uniform((static_cast<int>(threadIdx.x) / warpgroup_threads - 1) * warpgroup_rows);
  [[maybe_unused]] auto* const control = from.control();
  unsigned zeroed = 0;
  for (unsigned parity = 1;; parity ^= 1u) {
    from.wait_full();
    tile_task what = from.told();
    what.rows = uniform(what.rows), what.steps = uniform(what.steps);
    if (!stages_sums<Epilogue> && what.rows == 0) return;
    float sums[shape::columns / 2];
    constexpr int at_once = instruction_columns<Operands, Epilogue>;
    if (first < what.rows || (zeroes_rows<Operands> && what.rows > 0)) {
      if constexpr (gpu::sums_steps_apart<typename Operands::T>)
        sum_stages_apart<Operands, at_once>(from, first, what, of.scales, sums);
      else
        sum_stages<Operands, at_once>(from, first, what, zeroed, sums);
    } else if (what.rows > 0) {
      skip_stages(from, what.steps);
    }
    if constexpr (scales_sums<Epilogue>)
      if (first < what.rows) scale<Operands>(what, first, Operands::columns(of), epilogue, sums);
    if constexpr (stages_sums<Epilogue>) {
      wait_phase(&control->handed, parity);
      if (first < what.rows) staged_sums<staging<Epilogue>, shape::columns>{from.staged()}.store(sums, first);
      if (threadIdx.x == warpgroup_threads) control->staged_task = what;
      arrive_together(&control->staged);
      if (what.rows == 0) return;
    } else if (first < what.rows) {
      store_pairs<shape::columns>(sums, first, what, Operands::columns(of), epilogue);
    }
  }
}

/// What the warps do that hand staged sums over.
template <class Operands, class Epilogue>
__device__ inline void hand_tiles_over(ring<typename Operands::shape> const& from, std::int64_t columns,
                                       Epilogue const& epilogue) {
  auto* const control = from.control();
  staged_sums<staging<Epilogue>, Operands::shape::columns> const sums{from.staged()};
  for (unsigned parity = 0;; parity ^= 1u) {
    wait_phase(&control->staged, parity);
    tile_task const what = control->staged_task;
    if (what.rows == 0) return;
    using block = block_of<Operands, Epilogue>;
    gpu::hand_over<Operands::matrices, block::handing_warps * 32>(
        sums, gpu::tile{what.group, what.first_row, what.rows, what.column_tile}, columns, scaled_for(epilogue),
        static_cast<int>(threadIdx.x) - block::first_handing_thread);
    arrive_together(&control->handed);
  }
}

template <class Operands, class Epilogue>
__global__ void __launch_bounds__(launchable_threads<Operands, Epilogue>, 1)
    wgmma_tiles(typename Operands::product const __grid_constant__ of,
                typename Operands::maps const __grid_constant__ maps, Epilogue const __grid_constant__ epilogue) {
  using block = block_of<Operands, Epilogue>;
  if constexpr (launchable_threads<Operands, Epilogue> != block::threads) {
    __trap();
  } else {
    ring<typename Operands::shape> const stages(dynamic_shared());
    if (threadIdx.x == 0) stages.begin(arrivals_to_fill<Operands>, block::handing_warps);
    __syncthreads();
    int const warp = uniform(static_cast<int>(threadIdx.x) / 32), warpgroup = warp / (warpgroup_threads / 32);
    if (warpgroup == 0) {
      give_registers<block::first_registers(Operands::copying_registers)>();
      if (!block::hands_over_beside || warp == 0)
        fill_stages<Operands>(stages, of, maps);
      else if constexpr (block::hands_over_beside)
        hand_tiles_over<Operands>(stages, Operands::columns(of), epilogue);
    } else if (warpgroup <= multiplying_warpgroups) {
      take_registers<block::multiplying_registers(Operands::copying_registers)>();
      sum_tiles<Operands>(stages, of, epilogue);
    } else if constexpr (block::handing_warpgroups > 0) {
      if constexpr (block::handing_registers < block::starting_registers)
        give_registers<block::handing_registers>();
      else
        take_registers<block::handing_registers>();
      hand_tiles_over<Operands>(stages, Operands::columns(of), epilogue);
    }
  }
}

/// Whether the code that was loaded for this kernel is that of sm_90a.
template <class Operands, class Epilogue, class Engine> bool runs_here(Engine const& engine, char const* name) {
  moiety::detail::device_scope const scope(engine.device());
  cudaFuncAttributes about{};
  moiety::detail::expect(cudaFuncGetAttributes(&about, &wgmma_tiles<Operands, Epilogue>), name);
  return about.maxThreadsPerBlock >= block_of<Operands, Epilogue>::threads;
}

template <class Operands, class Engine, class Epilogue>
void launch_tiles(Engine& engine, char const* name, typename Operands::product const& of,
                  typename Operands::maps const& maps, std::int64_t tiles, Epilogue const& epilogue) {
  engine.launch(name, &wgmma_tiles<Operands, Epilogue>,
                {std::min<std::int64_t>(tiles, engine.multiprocessors()), block_of<Operands, Epilogue>::threads,
                 Operands::shape::shared_bytes},
                of, maps, epilogue);
}

/// A stored matrix [rows x columns] of each group, as the copy engine sees it. The distance of one group to none is any.
template <class T>
mapped_groups as_mapped(gpu::ragged_rows const& of, grouped_matrix<T const> const& w, std::int64_t rows,
                        std::int64_t columns, int box_rows) {
  return {w.data,       of.groups, rows,          columns, of.groups == 1 ? rows * w.row_stride : w.group_stride,
          w.row_stride, box_rows,  int{sizeof(T)}};
}
template <class T>
mapped_rows as_mapped(gpu::ragged_rows const& of, rows_of<T> const& a, std::int64_t columns, int box_rows = tile_rows) {
  return {a.data, of.rows_bound, columns, a.stride, box_rows, int{sizeof(T)}};
}

/// Operands is rows_nt or rows_nn, of stored matrices [rows x columns].
template <class Operands, class Engine, class Epilogue>
bool launch_rows(Engine& engine, char const* name, typename Operands::product const& of, std::int64_t rows,
                 std::int64_t columns, Epilogue const& epilogue) {
  auto const stored = [&](int m) { return as_mapped(of.rows, of.w[m], rows, columns, Operands::box_rows); };
  typename Operands::maps maps{};
  for (int m = 0; m < Operands::product::Right; ++m)
    if (!mappable(stored(m))) return false;
  if (!runs_here<Operands, Epilogue>(engine, name)) return false;
  for (int m = 0; m < Operands::product::Right; ++m) maps.stored[m] = make_tensor_map(stored(m));
  if constexpr (!Operands::copies)
    for (int m = 0; m < Operands::product::Left; ++m) maps.rows[m] = make_tensor_map(as_mapped(of.rows, of.a[m], of.k));
  std::int64_t const tiles =
      gpu::row_tiles_bound(of.rows.rows_bound, of.rows.groups, tile_rows) * gpu::tiles_of(of.n, Operands::width);
  launch_tiles<Operands>(engine, name, of, maps, tiles, epilogue);
  return true;
}

template <template <class, class, int, bool> class Operands, class T, int M, class Engine, class Product,
          class Epilogue>
bool choose_rows(Engine& engine, char const* name, Product const& of, std::int64_t rows, std::int64_t columns,
                 Epilogue const& epilogue) {
  using shape = shape_of<T, Epilogue>;
  bool aligned = true, mapped = true;
  for (auto const& a : of.a) {
    aligned = aligned && gpu::rows_aligned(a, 16);
    mapped = mapped && a.index == nullptr && mappable(as_mapped(of.rows, a, of.k));
  }
  if (engine.portable() || !aligned) return false;
  return mapped ? launch_rows<Operands<T, shape, M, true>>(engine, name, of, rows, columns, epilogue)
                : launch_rows<Operands<T, shape, M, false>>(engine, name, of, rows, columns, epilogue);
}

template <class Scales> struct rows_with {
  template <class T, class Shape, int M, bool Mapped> using nt = rows_nt<T, Shape, M, Mapped, Scales>;
};

template <class Engine, class T, int M, class Scales, class Epilogue>
bool multiply_nt(Engine& engine, gpu::rows_product<T, T, 1, M, Scales> const& of, Epilogue const& epilogue) {
  if constexpr (compiled_for_90())
    return choose_rows<rows_with<Scales>::template nt, T, M>(engine, "grouped_gemm_nt", of, of.n, of.k, epilogue);
  else
    return false;
}

template <class Engine, class T, int M, class Epilogue>
bool multiply_nn(Engine& engine, gpu::rows_product<T, T, M, M> const& of, Epilogue const& epilogue) {
  if constexpr (compiled_for_90())
    return choose_rows<rows_nn, T, M>(engine, "grouped_gemm_nn", of, of.k, of.n, epilogue);
  else
    return false;
}

template <bool Mapped, class T, class Engine>
bool launch_matrix(Engine& engine, gpu::matrix_product<T, T, float> const& of) {
  using epilogue = gpu::store_matrix<float>;
  using operands = rows_tn<T, shape_of<T, epilogue>, Mapped>;
  if (!runs_here<operands, epilogue>(engine, "grouped_gemm_tn")) return false;
  typename operands::maps maps{};
  if constexpr (Mapped)
    maps = {{make_tensor_map(as_mapped(of.rows, of.a, of.n, operands::box_rows)),
             make_tensor_map(as_mapped(of.rows, of.b, of.k, operands::box_rows))}};
  std::int64_t const tiles = of.rows.groups * gpu::tiles_of(of.n, tile_rows) * gpu::tiles_of(of.k, operands::width);
  launch_tiles<operands>(engine, "grouped_gemm_tn", of, maps, tiles,
                         epilogue{of.out.data, of.out.group_stride, of.out.row_stride, of.accumulate});
  return true;
}

template <class Engine, class T> bool multiply_tn(Engine& engine, gpu::matrix_product<T, T, float> const& of) {
  if constexpr (compiled_for_90()) {
    if (engine.portable() || !gpu::rows_aligned(of.a, 16) || !gpu::rows_aligned(of.b, 16)) return false;
    bool const mapped = of.a.index == nullptr && of.b.index == nullptr &&
                        mappable(as_mapped(of.rows, of.a, of.n, gpu::tile_depth)) &&
                        mappable(as_mapped(of.rows, of.b, of.k, gpu::tile_depth));
    return mapped ? launch_matrix<true>(engine, of) : launch_matrix<false>(engine, of);
  } else {
    return false;
  }
}

/// Whether this program and the engine's device have these kernels.
template <class Engine> bool available(Engine const& engine) {
  return compiled_for_90() && engine.compute_capability() == 90 && !engine.portable();
}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
