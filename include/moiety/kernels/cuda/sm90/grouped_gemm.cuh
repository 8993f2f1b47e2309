// SPDX-License-Identifier: Apache-2.0
// Grouped products of bf16 or fp16 by wgmma, with float sums: what portable/grouped_gemm.cuh hands over to where it can.
//
//   multiply_nt, multiply_nn, multiply_tn    true if the product was put into the stream, false if it is not for here
//
// They take what a program that was compiled for sm_90a multiplies on such a device, of operands whose rows begin at
// multiples of 16 bytes and whose matrices the copy engine can address (mappable), and which have an element. That is a
// question of types, extents, addresses and the device alone, never of how many rows there are.
//
// A launch has a block for each multiprocessor. Tiles of 128 rows (tile_shape.hpp) are numbered as tiles.hpp says; block b
// makes tiles b, b + blocks, ... One warpgroup fills the ring, the other two multiply and hand over:
//
//   empty[s]   the phase ends when all warps that multiply have done with stage s
//   full[s]    the phase ends when the stage's copies are there. The first stage of a tile brings its task too
//
// Stored matrices come by the copy engine, in boxes; so do rows that lie one after another, of which rows_bound lie in memory
// (the last tile of a group reads some of the next, and hands nothing over of them). Rows that are gathered come by cp.async,
// with zeros where there is none, published to the products by the threads that waited for them. An output is summed in
// ascending k, 16 at a time (m first, then k; in tn over the rows of the group), the rest of the last 64 being zeros.
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
#include <moiety/kernels/cuda/sm90/quad.cuh>
#include <moiety/kernels/cuda/sm90/tensor_map.cuh>
#include <moiety/kernels/cuda/sm90/tensor_map.hpp>
#include <moiety/kernels/cuda/sm90/tile_shape.hpp>
#include <moiety/kernels/cuda/tiles.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

// Other architectures get a kernel that no block of block_threads can be launched of: runs_here() asks for that.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr int launchable_threads = 1;
#else
inline constexpr int launchable_threads = block_threads;
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

/// What lies behind the stages of a ring.
template <int Stages> struct ring_control {
  barrier full[Stages], empty[Stages];
  tile_task tasks[Stages];
};

/// A thread's view of the ring, and where it is in it.
template <class Shape> struct ring {
  using control_type = ring_control<Shape::stages>;
  static_assert(sizeof(control_type) <= control_bytes);
  std::byte* stages;
  ring_place at;

  __device__ explicit ring(std::byte* shared) {
    stages = shared + (0u - shared_address(shared)) % static_cast<unsigned>(tile_alignment);
  }
  __device__ control_type* control() const { return reinterpret_cast<control_type*>(stages + Shape::ring_bytes); }
  /// One thread, before the others know of the ring.
  __device__ void begin(unsigned arrivals_to_fill) const {
    MOIETY_REGISTERS
    for (int stage = 0; stage < Shape::stages; ++stage) {
      init_barrier(control()->full + stage, arrivals_to_fill);
      init_barrier(control()->empty + stage, multiplying_warpgroups * warpgroup_threads / 32);
    }
    publish_barriers();
  }
  __device__ std::byte* stage() const { return stages + at.stage * Shape::stage_bytes; }
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

/// What boxes bring to a stage: B, and A where rows are mapped.
template <class Shape, bool Mapped>
inline constexpr unsigned mapped_bytes_of = unsigned{Shape::stage_bytes - (Mapped ? 0 : tile_a_bytes)};

/// Tile `number` of a product whose tiles are `width` columns wide, summed over `terms` times k. All lanes of a warp together.
template <class Product>
__device__ inline tile_task find_rows(Product const& of, std::int64_t number, int width, int terms) {
  gpu::tile const at = gpu::warp_find_tile(of.rows, number, tile_rows, gpu::tiles_of(of.n, width));
  return {static_cast<int>(at.group), static_cast<int>(at.first_row), at.rows, static_cast<int>(at.column_tile),
          terms * static_cast<int>(gpu::tiles_of(of.k, gpu::tile_depth))};
}

/// The rows of a tile on their way by cp.async: of each of 8 rows, a thread copies one of the 8 chunks of 64 k.
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
    std::int64_t const first = k0 + chunk * gpu::chunk_elements;
    int const bytes = gpu::chunk_count(k - first) * 2;
    MOIETY_REGISTERS
    for (int i = 0; i < count; ++i)
      copy_async_16(to + gpu::chunk_offset(row(), chunk) + i * step * gpu::tile_row_bytes,
                    of.data + (numbers[i] < 0 ? 0 : numbers[i] * of.stride + first), numbers[i] < 0 ? 0 : bytes);
  }
};

/// Rows times stored matrices [n x k]: M of them side by side in at most `Most` columns.
template <class T_, int Most, int M, bool Mapped> struct rows_nt {
  using T = T_;
  using product = gpu::rows_product<T, T, 1, M>;
  using maps = product_maps<1, M>;
  static constexpr int matrices = M, width = gpu::matrix_columns(Most, M);
  using shape = tile_shape<M * width>;
  static constexpr tile_order a_order = tile_order::k_first, b_order = tile_order::k_first;
  static constexpr int box_rows = width, copying_registers = 56;
  static constexpr bool copies = !Mapped;
  static constexpr unsigned mapped_bytes = mapped_bytes_of<shape, Mapped>;

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
  __device__ void advance() { k0 += gpu::tile_depth; }
};

/// M times rows times stored matrices [k x n], in one sum.
template <class T_, int Most, int M, bool Mapped> struct rows_nn {
  using T = T_;
  using product = gpu::rows_product<T, T, M, M>;
  using maps = product_maps<M, M>;
  static constexpr int matrices = 1, width = Most;
  using shape = tile_shape<width>;
  static constexpr tile_order a_order = tile_order::k_first, b_order = tile_order::outer_first;
  static constexpr int box_rows = gpu::tile_depth, copying_registers = Mapped || M == 1 ? 56 : 72;
  static constexpr bool copies = !Mapped;
  static constexpr unsigned mapped_bytes = mapped_bytes_of<shape, Mapped>;

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

/// Sums over a group's rows, for all of which both operands come by cp.async: behind the last row, both are zeros.
template <class T_, int Most> struct rows_tn {
  using T = T_;
  using product = gpu::matrix_product<T, T, float>;
  struct maps {};
  static constexpr int matrices = 1, width = Most;
  using shape = tile_shape<width>;
  static constexpr tile_order a_order = tile_order::outer_first, b_order = tile_order::outer_first;
  static constexpr int copying_registers = 56;
  static constexpr bool copies = true;
  static constexpr unsigned mapped_bytes = 0;
  using operand_rows = gpu::summed_rows<T, warpgroup_threads>;

  operand_rows a, b;
  std::int64_t n, k, row, col;

  __device__ static std::int64_t columns(product const& of) { return of.k; }
  /// A group without rows has one step of zeros, or none where there is nothing to write.
  __device__ static tile_task find(product const& of, std::int64_t number) {
    gpu::matrix_tile const at =
        gpu::find_matrix_tile(number, gpu::tiles_of(of.n, tile_rows), gpu::tiles_of(of.k, width));
    if (at.group >= of.rows.groups) return {};
    std::int64_t const first = at.row_tile * tile_rows, left = of.n - first;
    int const steps = static_cast<int>(gpu::tiles_of(of.rows.count(at.group), gpu::tile_depth));
    return {static_cast<int>(at.group), static_cast<int>(first), left < tile_rows ? static_cast<int>(left) : tile_rows,
            static_cast<int>(at.column_tile), steps == 0 && !of.accumulate ? 1 : steps};
  }
  __device__ rows_tn(product const& of, maps const&, tile_task const& what)
      : a(of.a, of.rows.first(what.group), of.rows.first(what.group + 1)),
        b(of.b, of.rows.first(what.group), of.rows.first(what.group + 1)),
        n(of.n),
        k(of.k),
        row(what.first_row),
        col(std::int64_t{what.column_tile} * width) {}
  __device__ void load(std::byte*, barrier*) const {}
  __device__ void copy(std::byte* stage) {
    a.template fill<true>(stage, row, n);  // and goes on to the next rows
    MOIETY_REGISTERS
    for (int first = 0; first < width; first += 128)
      operand_rows::tile_type::template fill<true>(stage + tile_a_bytes + outer_offset(first), b.last - b.first,
                                                   col + first, k,
                                                   [&](int i) { return b.of.data + b.next[i] * b.of.stride; });
  }
  __device__ void advance() {
    b.first += gpu::tile_depth;
    b.number();
  }
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

/// Sums the stages of a tile, rows `first` ... first + 63 of it, one step's products under way while the next begin.
template <class Operands>
__device__ inline void sum_stages(ring<typename Operands::shape>& from, int first, int steps,
                                  float (&sums)[Operands::shape::columns / 2]) {
  barrier* read = nullptr;
  for (int step = 0; step < steps; ++step) {
    from.wait_full();
    std::uint32_t const a = shared_address(from.stage()) + static_cast<std::uint32_t>(outer_offset(first));
    std::uint32_t const b = shared_address(from.stage()) + std::uint32_t{tile_a_bytes};
    hold(sums);
    begin_products();
    MOIETY_REGISTERS
    for (int i = 0; i < gpu::tile_depth / step_depth; ++i)
      multiply_async<typename Operands::T, Operands::shape::columns, Operands::a_order, Operands::b_order>(
          sums, operand<Operands::a_order>(a, i), operand<Operands::b_order>(b, i), step > 0 || i > 0);
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
__device__ inline void sum_tiles(ring<typename Operands::shape> from, std::int64_t columns, Epilogue const& epilogue) {
  int const first = (static_cast<int>(threadIdx.x) / warpgroup_threads - 1) * warpgroup_rows;
  for (;;) {
    from.wait_full();
    tile_task const what = from.told();
    if (what.rows == 0) return;
    if (first >= what.rows) {
      skip_stages(from, what.steps);
      continue;
    }
    float sums[Operands::shape::columns / 2];
    sum_stages<Operands>(from, first, what.steps, sums);
    hand_over_quads<Operands::matrices, Operands::width>(sums, first, what, columns, epilogue);
  }
}

template <class Operands, class Epilogue>
__global__ void __launch_bounds__(launchable_threads, 1)
    wgmma_tiles(typename Operands::product const __grid_constant__ of,
                typename Operands::maps const __grid_constant__ maps, Epilogue const __grid_constant__ epilogue) {
  if constexpr (launchable_threads != block_threads) {
    __trap();
  } else {
    ring<typename Operands::shape> const stages(dynamic_shared());
    if (threadIdx.x == 0) stages.begin(arrivals_to_fill<Operands>);
    __syncthreads();
    if (threadIdx.x < warpgroup_threads) {
      give_registers<Operands::copying_registers>();
      fill_stages<Operands>(stages, of, maps);
    } else {
      take_registers<multiplying_registers(Operands::copying_registers)>();
      sum_tiles<Operands>(stages, Operands::columns(of), epilogue);
    }
  }
}

/// Whether the code that was loaded for this kernel is that of sm_90a.
template <class Operands, class Epilogue, class Engine> bool runs_here(Engine const& engine, char const* name) {
  moiety::detail::device_scope const scope(engine.device());
  cudaFuncAttributes about{};
  moiety::detail::expect(cudaFuncGetAttributes(&about, &wgmma_tiles<Operands, Epilogue>), name);
  return about.maxThreadsPerBlock >= block_threads;
}

template <class Operands, class Engine, class Epilogue>
void launch_tiles(Engine& engine, char const* name, typename Operands::product const& of,
                  typename Operands::maps const& maps, std::int64_t tiles, Epilogue const& epilogue) {
  engine.launch(name, &wgmma_tiles<Operands, Epilogue>,
                {std::min<std::int64_t>(tiles, engine.multiprocessors()), block_threads, Operands::shape::shared_bytes},
                of, maps, epilogue);
}

/// A stored matrix [rows x columns] of each group, as the copy engine sees it. The distance of one group to none is any.
template <class T>
mapped_groups as_mapped(gpu::ragged_rows const& of, grouped_matrix<T const> const& w, std::int64_t rows,
                        std::int64_t columns, int box_rows) {
  return {w.data,       of.groups, rows, columns, of.groups == 1 ? rows * w.row_stride : w.group_stride,
          w.row_stride, box_rows};
}
template <class T> mapped_rows as_mapped(gpu::ragged_rows const& of, rows_of<T> const& a, std::int64_t columns) {
  return {a.data, of.rows_bound, columns, a.stride, tile_rows};
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

/// Tiles of 128 columns where those of 256 would be at most half full, and for epilogues that sum rows, which leave few
/// registers to the sums. The bits are those of every choice.
template <template <class, int, int, bool> class Operands, class T, int M, class Engine, class Product, class Epilogue>
bool choose_rows(Engine& engine, char const* name, Product const& of, std::int64_t rows, std::int64_t columns,
                 Epilogue const& epilogue) {
  bool aligned = true, mapped = true;
  for (auto const& a : of.a) {
    aligned = aligned && gpu::rows_aligned(a, 16);
    mapped = mapped && a.index == nullptr && mappable(as_mapped(of.rows, a, of.k));
  }
  if (engine.portable() || !aligned) return false;
  using narrow = Operands<T, 128, M, false>;
  if constexpr (!gpu::sums_rows<Epilogue>) {
    if (of.n > narrow::width && mapped)
      return launch_rows<Operands<T, 256, M, true>>(engine, name, of, rows, columns, epilogue);
    if (of.n > narrow::width) return launch_rows<Operands<T, 256, M, false>>(engine, name, of, rows, columns, epilogue);
  }
  return launch_rows<narrow>(engine, name, of, rows, columns, epilogue);
}

template <class Engine, class T, int M, class Epilogue>
bool multiply_nt(Engine& engine, gpu::rows_product<T, T, 1, M> const& of, Epilogue const& epilogue) {
  if constexpr (compiled_for_90())
    return choose_rows<rows_nt, T, M>(engine, "grouped_gemm_nt", of, of.n, of.k, epilogue);
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

template <int Most, class T, class Engine>
bool launch_matrix(Engine& engine, gpu::matrix_product<T, T, float> const& of) {
  using operands = rows_tn<T, Most>;
  using epilogue = gpu::store_matrix<float>;
  if (!runs_here<operands, epilogue>(engine, "grouped_gemm_tn")) return false;
  std::int64_t const tiles = of.rows.groups * gpu::tiles_of(of.n, tile_rows) * gpu::tiles_of(of.k, Most);
  launch_tiles<operands>(engine, "grouped_gemm_tn", of, {}, tiles,
                         epilogue{of.out.data, of.out.group_stride, of.out.row_stride, of.accumulate});
  return true;
}

template <class Engine, class T> bool multiply_tn(Engine& engine, gpu::matrix_product<T, T, float> const& of) {
  if constexpr (compiled_for_90()) {
    if (engine.portable() || !gpu::rows_aligned(of.a, 16) || !gpu::rows_aligned(of.b, 16)) return false;
    return of.k <= 128 ? launch_matrix<128>(engine, of) : launch_matrix<256>(engine, of);
  } else {
    return false;
  }
}

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90
