// SPDX-License-Identifier: Apache-2.0
// The products of a router of bf16 tokens by the tensor cores: what router_gemm.hpp states, but for the order of sums. A float is
// split into bf16 parts, each the rest of those before it, rounded: two hold 16 of its bits, three all 24 of a normal number.
// Products of parts are exact in float, and summed as grouped_gemm.cuh sums bf16:
//
//   router_logits            z  = x W₂ᵀ + x W₁ᵀ + x W₀ᵀ, one sum, then b: the parts lose nothing
//   router_input_gradient    dx = Σ_m dz₁ W₀ + Σ_m dz₀ W₁ + Σ_m dz₀ W₀, one sum: the parts lose 2⁻¹⁵ of each product at most
//   router_weight_gradient   dW (+)= Σ_blocks (Σ dz₀ᵀ x + Σ dz₁ᵀ x), blocks of block_tokens tokens of the list, in its order: the
//                            parts lose 2⁻¹⁶ of each product at most
//
// A token's logits and dx depend on no other token. Where x or W is not finite, or bf16 rounds W to infinity, a logit may be NaN.
// The parts lie in `room`, which has what bf16x3_room says.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/columns.cuh>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/cuda/portable/router_gemm.cuh>
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/router_gemm.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int split_threads = 256, split_columns = 8, added_columns = 4;

/// Columns that a part takes: whole 16 bytes.
MOIETY_HD constexpr std::int64_t part_width(std::int64_t columns) {
  return (columns + split_columns - 1) / split_columns * split_columns;
}

/// A matrix of floats as bf16 parts that lie side by side, with zeros behind the columns of each.
template <int Parts> struct split_matrix {
  bf16* data = nullptr;
  std::int64_t rows = 0, columns = 0;

  static constexpr std::int64_t bytes(std::int64_t rows, std::int64_t columns) {
    return moiety::detail::whole_blocks(rows * Parts * part_width(columns) * static_cast<std::int64_t>(sizeof(bf16)));
  }
  MOIETY_HD std::int64_t width() const { return part_width(columns); }
  MOIETY_HD std::int64_t stride() const { return Parts * width(); }
  rows_of<bf16> part_rows(int part) const { return {data + part * width(), stride()}; }
  grouped_matrix<bf16 const> part(int part) const { return {data + part * width(), 0, stride()}; }
};

/// Writes the parts of 8 values, columns col ... col + 7 of a row.
template <int Parts>
__device__ inline void store_parts(split_matrix<Parts> const& to, std::int64_t row, std::int64_t col,
                                   float (&rest)[split_columns]) {
  MOIETY_REGISTERS
  for (int part = 0; part < Parts; ++part) {
    bf16 rounded[split_columns];
    MOIETY_REGISTERS
    for (int c = 0; c < split_columns; ++c) {
      rounded[c] = static_cast<bf16>(rest[c]);
      rest[c] -= static_cast<float>(rounded[c]);
    }
    store_columns(to.data + row * to.stride() + part * to.width() + col, split_columns, rounded);
  }
}

/// Into `rows` rows from `first_row` on, and the columns from `first_col` on: zeros behind the rows of `from`.
template <int Parts>
__global__ void __launch_bounds__(split_threads)
    split_rows(matrix_view<float const> const from, split_matrix<Parts> const to, std::int64_t first_row,
               std::int64_t rows, std::int64_t first_col) {
  std::int64_t const across = part_width(from.cols()) / split_columns, all = rows * across;
  std::int64_t const step = std::int64_t{gridDim.x} * split_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * split_threads + threadIdx.x; i < all; i += step) {
    std::int64_t const row = i / across, col = i % across * split_columns, left = from.cols() - col;
    int const count = left < split_columns ? static_cast<int>(left) : split_columns;
    float values[split_columns] = {};
    if (row < from.rows()) load_columns(from.row(row) + col, count, values);
    store_parts(to, first_row + row, first_col + col, values);
  }
}

/// `to` has the rows of `from` as columns.
template <int Parts>
__global__ void __launch_bounds__(split_threads)
    split_turned(matrix_view<float const> const from, split_matrix<Parts> const to) {
  std::int64_t const all = to.rows * (to.width() / split_columns);
  std::int64_t const step = std::int64_t{gridDim.x} * split_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * split_threads + threadIdx.x; i < all; i += step) {
    std::int64_t const row = i % to.rows, col = i / to.rows * split_columns;
    float values[split_columns];
    MOIETY_REGISTERS
    for (int c = 0; c < split_columns; ++c) values[c] = col + c < to.columns ? from.row(col + c)[row] : 0.0f;
    store_parts(to, row, col, values);
  }
}

/// Where blocks of a list of offsets[1] tokens begin, and the last one ends.
template <int = 0>
__global__ void __launch_bounds__(split_threads)
    cut_list(std::int64_t const* offsets, std::int64_t each, std::int64_t blocks, std::int64_t* begins) {
  std::int64_t const i = std::int64_t{blockIdx.x} * split_threads + threadIdx.x;
  if (i <= blocks) begins[i] = i * each < offsets[1] ? i * each : offsets[1];
}

/// What blocks of tokens give dW: of each, rows of dz₀ᵀ x and behind them those of dz₁ᵀ x.
struct weight_blocks {
  float const* data;
  std::int64_t count, part_rows, stride;

  __device__ float const* at(std::int64_t block, int part, std::int64_t row) const {
    return data + ((2 * block + part) * part_rows + row) * stride;
  }
};

template <int = 0>
__global__ void __launch_bounds__(split_threads)
    add_blocks(weight_blocks const from, matrix_view<float> const dw, bool accumulate) {
  constexpr int width = added_columns;
  std::int64_t const across = (dw.cols() + width - 1) / width;
  std::int64_t const i = std::int64_t{blockIdx.x} * split_threads + threadIdx.x;
  if (i >= dw.rows() * across) return;
  std::int64_t const row = i / across, col = i % across * width, left = dw.cols() - col;
  int const count = left < width ? static_cast<int>(left) : width;
  float sums[width] = {};
  for (std::int64_t block = 0; block < from.count; ++block) {
    float first[width], second[width];
    load_columns(from.at(block, 0, row) + col, count, first);
    load_columns(from.at(block, 1, row) + col, count, second);
    MOIETY_REGISTERS
    for (int c = 0; c < width; ++c) sums[c] += first[c] + second[c];
  }
  if (accumulate) {
    float before[width];
    load_columns(dw.row(row) + col, count, before);
    MOIETY_REGISTERS
    for (int c = 0; c < width; ++c) sums[c] = before[c] + sums[c];
  }
  store_columns(dw.row(row) + col, count, sums);
}

inline launch_shape thread_a_piece(std::int64_t pieces) {
  return {(pieces + split_threads - 1) / split_threads, split_threads};
}

}  // namespace gpu

/// What room the products of each pass need, for `matrices` pairs of dz and W.
struct bf16x3_room {
  static constexpr std::int64_t block_tokens = 2048;

  static constexpr std::int64_t logits(std::int64_t hidden, std::int64_t experts) {
    return gpu::split_matrix<3>::bytes(hidden, experts);
  }
  static constexpr std::int64_t input_gradient(std::int64_t tokens, std::int64_t hidden, std::int64_t experts,
                                               std::int64_t matrices) {
    std::int64_t const all = matrices * gpu::part_width(experts);
    return gpu::split_matrix<2>::bytes(tokens, all) + gpu::split_matrix<2>::bytes(all, hidden);
  }
  static constexpr std::int64_t weight_gradient(std::int64_t tokens, std::int64_t hidden, std::int64_t experts) {
    return gpu::split_matrix<2>::bytes(tokens, experts) + begins_bytes(tokens) +
           blocks(tokens) * 2 * gpu::part_width(experts) * gpu::part_width(hidden) *
               static_cast<std::int64_t>(sizeof(float));
  }
  static constexpr std::int64_t blocks(std::int64_t tokens) { return (tokens + block_tokens - 1) / block_tokens; }
  static constexpr std::int64_t begins_bytes(std::int64_t tokens) {
    return moiety::detail::whole_blocks((blocks(tokens) + 1) * static_cast<std::int64_t>(sizeof(std::int64_t)));
  }
};

/// Taken by value: each product begins at the start of the room.
class bf16x3_engine {
 public:
  bf16x3_engine(cuda_engine& engine, void* room) : of(engine), room_(static_cast<std::byte*>(room)) {}

  /// The next place in the room.
  template <class T> T* take(std::int64_t bytes) {
    auto* const here = reinterpret_cast<T*>(room_);
    room_ += bytes;
    return here;
  }
  template <int Parts> gpu::split_matrix<Parts> take_split(std::int64_t rows, std::int64_t columns) {
    return {take<bf16>(gpu::split_matrix<Parts>::bytes(rows, columns)), rows, columns};
  }

  template <int Parts>
  void split(matrix_view<float const> from, gpu::split_matrix<Parts> const& to, std::int64_t first_row,
             std::int64_t rows, std::int64_t first_col) {
    of.launch("splitting floats", gpu::split_rows<Parts>, pieces(rows, from.cols()), from, to, first_row, rows,
              first_col);
  }
  template <int Parts> gpu::split_matrix<Parts> split_turned(matrix_view<float const> from) {
    auto const to = take_split<Parts>(from.cols(), from.rows());
    of.launch("splitting floats", gpu::split_turned<Parts>, pieces(to.rows, to.columns), from, to);
    return to;
  }

  cuda_engine& of;

 private:
  launch_shape pieces(std::int64_t rows, std::int64_t columns) const {
    std::int64_t const all = rows * (gpu::part_width(columns) / gpu::split_columns);
    return {of.blocks_in_turn(gpu::thread_a_piece(all).blocks), gpu::split_threads};
  }

  std::byte* room_;
};

namespace detail {

template <class T> consteval bool splits_router_of() {
  static_assert(std::same_as<T, bf16>,
                "mo::bf16x3_products multiply tokens of bf16: the deployment needs 'using element = bf16'.");
  return std::same_as<T, bf16>;
}

}  // namespace detail

template <scalar T>
void router_logits(bf16x3_engine by, matrix_view<T const> x, matrix_view<sum_t<T> const> w,
                   matrix_view<sum_t<T>> logits, sum_t<T> const* bias = nullptr) {
  if constexpr (detail::splits_router_of<T>()) {
    auto const parts = by.template split_turned<3>(w);
    rows_of<T> const rows{x.data(), x.stride()};
    auto const multiply = [&](auto const& epilogue) {
      grouped_gemm_nn<float>(by.of, 1, nullptr, x.rows(), std::array{rows, rows, rows},
                             std::array{parts.part(2), parts.part(1), parts.part(0)}, w.rows(), w.cols(), epilogue);
    };
    gpu::store_rows<float, float> const store{logits.data(), logits.stride()};
    if (bias == nullptr) return multiply(store);
    multiply(gpu::store_biased_rows<float>{store, bias});
  }
}

template <class S, std::size_t M>
void router_input_gradient(bf16x3_engine by, std::array<matrix_view<S const>, M> const& dlogits,
                           std::array<matrix_view<S const>, M> const& w, S* dx) {
  if constexpr (std::same_as<S, float>) {  // else router_logits has refused the layer
    std::int64_t const tokens = dlogits[0].rows(), hidden = w[0].cols(), each = gpu::part_width(w[0].rows());
    auto const dz = by.template take_split<2>(tokens, each * std::int64_t{M}),
               of = by.template take_split<2>(each * std::int64_t{M}, hidden);
    for (std::size_t m = 0; m < M; ++m) {
      std::int64_t const first = each * static_cast<std::int64_t>(m);
      by.split(dlogits[m], dz, 0, tokens, first);
      by.split(w[m], of, first, each, 0);
    }
    grouped_gemm_nn<float>(by.of, 1, nullptr, tokens, std::array{dz.part_rows(1), dz.part_rows(0), dz.part_rows(0)},
                           std::array{of.part(0), of.part(1), of.part(0)}, hidden, dz.columns,
                           gpu::store_rows<float, float>{dx, hidden});
  }
}

template <scalar T>
void router_weight_gradient(bf16x3_engine by, matrix_view<sum_t<T> const> dlogits, matrix_view<T const> x,
                            std::int32_t const* list, std::int64_t const* offsets, matrix_view<sum_t<T>> dw,
                            bool accumulate) {
  if constexpr (detail::splits_router_of<T>()) {
    std::int64_t const blocks = bf16x3_room::blocks(x.rows()), stride = gpu::part_width(dw.cols());
    auto const dz = by.template take_split<2>(dlogits.rows(), dlogits.cols());
    by.split(dlogits, dz, 0, dz.rows, 0);
    auto* const begins = by.template take<std::int64_t>(bf16x3_room::begins_bytes(x.rows()));
    auto* const sums = by.template take<float>(0);
    by.of.launch("router_weight_gradient: blocks", gpu::cut_list<>, gpu::thread_a_piece(blocks + 1), offsets,
                 bf16x3_room::block_tokens, blocks, begins);
    grouped_gemm_tn<float>(by.of, blocks, begins, x.rows(), rows_of<T>{dz.data, dz.stride(), list},
                           rows_of<T>{x.data(), x.stride(), list},
                           grouped_matrix<float>{sums, dz.stride() * stride, stride}, dz.stride(), dw.cols(), false);
    std::int64_t const pieces = dw.rows() * ((dw.cols() + gpu::added_columns - 1) / gpu::added_columns);
    by.of.launch("router_weight_gradient: sums", gpu::add_blocks<>, gpu::thread_a_piece(pieces),
                 gpu::weight_blocks{sums, blocks, dz.width(), stride}, dw, accumulate);
  }
}

}  // namespace moiety::inline MOIETY_ABI::kernels
