// SPDX-License-Identifier: Apache-2.0
// Grouped matrix products on a GPU, see kernels/grouped_gemm.hpp for what they compute.
//
// Two operands of bf16 or of fp16 with float sums go to the tensor cores, whose order of sums is their own inside 16 k and
// ascending between: to the kernels of sm_90a where sm90/grouped_gemm.cuh takes them, and groups have not few rows; all others
// are chains of fused multiply-adds with the bits of the host. No result depends on rows_bound, on other groups or on the
// tile that was chosen; a device test holds the bits of sm_90a's kernels against the portable ones. `offsets` [groups + 1] is device memory, and null with one
// group of rows_bound rows; rows_bound >= offsets[groups] is all that the host knows of it. Results of nt and nn leave
// through an epilogue of tile_epilogue.cuh; tn writes zeros for an empty group, and with `accumulate` leaves it alone.
// Operands whose rows all begin at multiples of 16 bytes are read 16 bytes at a time. Nothing is validated or allocated.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/fma_gemm.cuh>
#include <moiety/kernels/cuda/portable/product.cuh>
#include <moiety/kernels/cuda/portable/tensor_core_gemm.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/cuda/sm90/grouped_gemm.cuh>
#include <moiety/kernels/cuda/tiles.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// Whether the tensor cores multiply these.
template <class S, class A, class B>
inline constexpr bool on_tensor_cores = std::same_as<S, float>&& std::same_as<A, B> &&
                                        (std::same_as<A, bf16> || std::same_as<A, fp16>);

/// Whether groups have so few rows, on average, that tiles of 32 are taken.
inline bool has_few_rows(cuda_engine const& engine, ragged_rows const& rows) {
  return rows.rows_bound <= engine.few_rows() * rows.groups;
}

template <class A, class B, std::size_t L, std::size_t R>
rows_product<A, B, static_cast<int>(L), static_cast<int>(R)> describe(ragged_rows const& rows,
                                                                      std::array<rows_of<A>, L> const& a,
                                                                      std::array<grouped_matrix<B const>, R> const& w,
                                                                      std::int64_t n, std::int64_t k) {
  rows_product<A, B, static_cast<int>(L), static_cast<int>(R)> of{rows, n, k, {}, {}};
  for (std::size_t m = 0; m < L; ++m) of.a[m] = a[m];
  for (std::size_t m = 0; m < R; ++m) of.w[m] = w[m];
  return of;
}

template <class A, class B, int L, int R, class Scales>
wide_loads rows_aligned(rows_product<A, B, L, R, Scales> const& of, std::int64_t a_bytes, std::int64_t b_bytes) {
  wide_loads wide{true, true};
  for (auto const& a : of.a) wide.a = wide.a && gpu::rows_aligned(a, a_bytes);
  for (auto const& w : of.w) wide.b = wide.b && gpu::rows_aligned(w, b_bytes);
  return wide;
}

/// The most blocks that tiles of `height` rows and `width` columns can take.
inline std::int64_t blocks_of(ragged_rows const& rows, std::int64_t n, std::int64_t height, std::int64_t width) {
  return row_tiles_bound(rows.rows_bound, rows.groups, height) * tiles_of(n, width);
}
template <class Product> std::int64_t blocks_of(Product const& of, std::int64_t height, std::int64_t width) {
  return of.rows.groups * tiles_of(of.n, height) * tiles_of(of.k, width);
}

template <class Operands, bool Wide, class Engine, class Epilogue>
void launch_tensor_rows(Engine& engine, char const* name, typename Operands::product const& of,
                        Epilogue const& epilogue) {
  using shape = typename Operands::shape;
  using T = typename Operands::product::A;
  engine.launch(name, &tensor_rows<T, Operands, Wide, Epilogue>,
                {blocks_of(of.rows, of.n, shape::rows, Operands::width), shape::threads, shape::shared_bytes}, of,
                epilogue);
}

/// Operands<Rows> is tensor_nt or tensor_nn.
template <template <class, int, int> class Operands, class T, int M, class Engine, class Product, class Epilogue>
void choose_tensor_rows(Engine& engine, char const* name, Product const& of, Epilogue const& epilogue) {
  wide_loads const wide = rows_aligned(of, 16, 16);
  if (!wide.a || !wide.b)
    launch_tensor_rows<Operands<T, 128, M>, false>(engine, name, of, epilogue);
  else if (has_few_rows(engine, of.rows))
    launch_tensor_rows<Operands<T, 32, M>, true>(engine, name, of, epilogue);
  else
    launch_tensor_rows<Operands<T, 128, M>, true>(engine, name, of, epilogue);
}

template <class S, class Operands, class Engine, class Epilogue>
void launch_fma_rows(Engine& engine, char const* name, typename Operands::product const& of, wide_loads aligned,
                     Epilogue const& epilogue) {
  using shape = typename Operands::shape;
  wide_loads const whole = Operands::whole_quads(of.n, of.k), wide{aligned.a && whole.a, aligned.b && whole.b};
  engine.launch(
      name, &fma_rows<S, Operands, Epilogue>,
      {blocks_of(of.rows, of.n, shape::rows, Operands::width), shape::threads, shape::template shared_bytes<S>}, of,
      wide, epilogue);
}

/// Calls launch(tile) with the largest tile whose blocks(tile) leave less than a quarter of the multiprocessors without work;
/// `few` rows would leave most of a large one empty.
template <class S, class Middle, class Blocks, class Launch>
void with_fma_tile(cuda_engine const& engine, bool few, Blocks const& blocks, Launch const& launch) {
  auto const fills = [&](auto shape) { return 4 * blocks(shape) >= 3 * engine.multiprocessors(); };
  if (!few && fills(large_fma_tile<S>{}))
    launch(large_fma_tile<S>{});
  else if (fills(Middle{}))
    launch(Middle{});
  else
    launch(small_fma_tile{});
}

/// Sums of rows need whole tiles.
template <template <class, class, class, int> class Operands, class S, int M, class Engine, class Product,
          class Epilogue>
void choose_fma_rows(Engine& engine, char const* name, Product const& of, Epilogue const& epilogue) {
  using A = typename Product::A;
  using B = typename Product::B;
  wide_loads const aligned = rows_aligned(of, quad_bytes<A>, quad_bytes<B>);
  auto const launch = [&]<class Shape>(Shape) {
    launch_fma_rows<S, Operands<A, B, Shape, M>>(engine, name, of, aligned, epilogue);
  };
  auto const blocks = [&]<class Shape>(Shape) {
    return blocks_of(of.rows, of.n, Shape::rows, Operands<A, B, Shape, M>::width);
  };
  if constexpr (sums_rows<Epilogue>)
    launch(large_fma_tile<S>{});
  else
    with_fma_tile<S, middle_fma_tile>(engine, has_few_rows(engine, of.rows), blocks, launch);
}

template <bool Wide, class Engine, class T>
void launch_tensor_matrix(Engine& engine, matrix_product<T, T, float> const& of) {
  using shape = typename tensor_tn<T>::shape;
  engine.launch("grouped_gemm_tn", &tensor_matrix<T, Wide>,
                {blocks_of(of, shape::rows, shape::columns), shape::threads, shape::shared_bytes}, of);
}

template <class Shape, class Engine, class A, class B, class S>
void launch_fma_matrix(Engine& engine, matrix_product<A, B, S> const& of) {
  using operands = fma_tn<A, B, S, Shape>;
  wide_loads const whole = operands::whole_quads(of.n, of.k),
                   wide{whole.a && rows_aligned(of.a, quad_bytes<A>), whole.b && rows_aligned(of.b, quad_bytes<B>)};
  engine.launch("grouped_gemm_tn", &fma_matrix<S, operands>,
                {blocks_of(of, Shape::rows, Shape::columns), Shape::threads, Shape::template shared_bytes<S>}, of,
                wide);
}

}  // namespace gpu

template <class T> bool wants_rows_in_order(cuda_engine const& engine, std::int64_t groups, std::int64_t rows_bound) {
  return may_want_rows_in_order<T, cuda_engine> && sm90::available(engine) &&
         !gpu::has_few_rows(engine, {nullptr, groups, rows_bound});
}

/// y_m(r, c) = sum over k of a(r, k) w_m(c, k) for M matrices [n x k] of each group side by side.
template <class S, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     rows_of<A> a, std::array<grouped_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  static_assert(M >= 1 && M <= 4);
  auto const of = gpu::describe(gpu::ragged_rows{offsets, groups, rows_bound}, std::array{a}, w, n, k);
  if constexpr (gpu::on_tensor_cores<S, A, B>) {
    if (gpu::has_few_rows(engine, of.rows) || !sm90::multiply_nt(engine, of, epilogue))
      gpu::choose_tensor_rows<gpu::tensor_nt, A, static_cast<int>(M)>(engine, "grouped_gemm_nt", of, epilogue);
  } else {
    gpu::choose_fma_rows<gpu::fma_nt, S, static_cast<int>(M)>(engine, "grouped_gemm_nt", of, epilogue);
  }
}

/// y(r, c) = sum over m, then k, of a_m(r, k) w_m(k, c) with w_m [k x n] of each group.
template <class S, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nn(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     std::array<rows_of<A>, M> const& a, std::array<grouped_matrix<B const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue) {
  auto const of = gpu::describe(gpu::ragged_rows{offsets, groups, rows_bound}, a, w, n, k);
  if constexpr (gpu::on_tensor_cores<S, A, B>) {
    if (gpu::has_few_rows(engine, of.rows) || !sm90::multiply_nn(engine, of, epilogue))
      gpu::choose_tensor_rows<gpu::tensor_nn, A, static_cast<int>(M)>(engine, "grouped_gemm_nn", of, epilogue);
  } else {
    gpu::choose_fma_rows<gpu::fma_nn, S, static_cast<int>(M)>(engine, "grouped_gemm_nn", of, epilogue);
  }
}

/// One matrix that lies as its transpose: what nt reads is an operand of nn, and the other way round. Of any engine on a device.
template <class S, class A, class B, class Engine, class Epilogue>
void grouped_gemm_nt(Engine&& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     rows_of<A> a, std::array<transposed_matrix<B const>, 1> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  grouped_gemm_nn<S>(engine, groups, offsets, rows_bound, std::array{a}, std::array{w[0].lying()}, n, k, epilogue);
}
template <class S, class A, class B, class Engine, class Epilogue>
void grouped_gemm_nn(Engine&& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     std::array<rows_of<A>, 1> const& a, std::array<transposed_matrix<B const>, 1> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue) {
  grouped_gemm_nt<S>(engine, groups, offsets, rows_bound, a[0], std::array{w[0].lying()}, n, k, epilogue);
}

/// out(i, j) = sum over rows r of the group of a(r, i) b(r, j), i < n, j < k; added to what is there if `accumulate`.
template <class S, class A, class B>
void grouped_gemm_tn(cuda_engine& engine, std::int64_t groups, std::int64_t const* offsets, std::int64_t rows_bound,
                     rows_of<A> a, rows_of<B> b, grouped_matrix<S> out, std::int64_t n, std::int64_t k,
                     bool accumulate) {
  gpu::matrix_product<A, B, S> const of{{offsets, groups, rows_bound}, n, k, a, b, out, accumulate};
  if constexpr (gpu::on_tensor_cores<S, A, B>) {
    if (sm90::multiply_tn(engine, of)) return;
    if (gpu::rows_aligned(a, 16) && gpu::rows_aligned(b, 16))
      gpu::launch_tensor_matrix<true>(engine, of);
    else
      gpu::launch_tensor_matrix<false>(engine, of);
  } else {
    gpu::with_fma_tile<S, gpu::middle_matrix_fma_tile>(
        engine, false, [&]<class Shape>(Shape) { return gpu::blocks_of(of, Shape::rows, Shape::columns); },
        [&]<class Shape>(Shape) { gpu::launch_fma_matrix<Shape>(engine, of); });
  }
}

}  // namespace moiety::inline MOIETY_ABI::kernels
