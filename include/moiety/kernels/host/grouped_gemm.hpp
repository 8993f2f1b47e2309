// SPDX-License-Identifier: Apache-2.0
// Grouped matrix products on the host, see kernels/grouped_gemm.hpp for what they compute and promise.
//
// The micro kernel holds a tile of sums in registers: `narrow` rows of one operand, each value broadcast, against up to
// three registers of the other, the `wide` one. All three directions reduce to it:
//
//        wide operand, packed                narrow operand                      sums of a tile
//   nt   rows of a, transposed (lane = row)  weights, read in place              [column][row], turned for the epilogue
//   nn   weights, copied (lane = column)     rows of a, in place or gathered     [row][column]
//   tn   rows of b, copied (lane = j)        rows of a, packed by narrow columns in the output itself
//
// Work is one list of tiles (group, column block, row block), sorted by group. The sum over k runs in blocks of `depth`
// whose partial sums are stored and reloaded unrounded, so blocks change no bit.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/host/simd.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::kernels::host_gemm {

/// Sizes of tiles, in elements of S.
template <class S> struct blocking {
  static constexpr std::int64_t lanes = simd::lanes<S>;
  static constexpr int narrow = simd::many_registers ? 8 : 4;  // rows of the micro kernel
  static constexpr int most_vectors = 3;                       // its registers across
  static constexpr std::int64_t rows = 256;                    // most rows of a tile
  static constexpr std::int64_t cols = column_block<S>;
  static constexpr std::int64_t depth = 1024 / static_cast<std::int64_t>(sizeof(S));
  static_assert(rows % lanes == 0 && cols % lanes == 0 && rows % narrow == 0 && cols % narrow == 0);
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// Cuts a worker's scratch memory into arrays that begin on cache lines.
class carver {
 public:
  explicit carver(std::span<std::byte> memory) : next_(memory.data()) {}
  template <class S> S* take(std::int64_t count) {
    S* const taken = reinterpret_cast<S*>(next_);
    next_ += round_up(count * static_cast<std::int64_t>(sizeof(S)), 64);
    return taken;
  }

 private:
  std::byte* next_;
};

/// A wide operand of `count` lanes, cut into panels of one to three registers that differ by at most one.
template <class S> struct panels {
  std::int64_t count, base, extra;

  explicit panels(std::int64_t width) {
    std::int64_t const vectors = ceil_div(width, blocking<S>::lanes);
    count = ceil_div(vectors, blocking<S>::most_vectors);
    base = count > 0 ? vectors / count : 0;
    extra = vectors - base * count;
  }
  int vectors(std::int64_t p) const { return static_cast<int>(base + (p < extra ? 1 : 0)); }
  std::int64_t first(std::int64_t p) const { return (p * base + std::min(p, extra)) * blocking<S>::lanes; }
  std::int64_t lanes() const { return first(count); }
};

/// A tile of the work list.
struct tile {
  std::int64_t group, row, rows, col, cols;
};

/// The list of tiles of nt and nn: groups, in each column blocks, in each row blocks of near equal size.
template <class S> class tile_list {
 public:
  tile_list(std::int64_t groups, std::int64_t const* offsets, std::int64_t n, int threads)
      : groups_(groups), offsets_(offsets), n_(n), column_blocks_(ceil_div(n, blocking<S>::cols)) {
    std::int64_t const wanted = 4 * std::int64_t{threads}, least = 2 * blocking<S>::lanes;
    while (count() < wanted && threads > 1 && most_rows_ / 2 >= least) most_rows_ /= 2;
  }

  std::int64_t count() const {
    std::int64_t blocks = 0;
    for (std::int64_t g = 0; g < groups_; ++g) blocks += row_blocks(g);
    return blocks * column_blocks_;
  }

  tile operator[](std::int64_t task) const {
    std::int64_t g = 0;
    for (; task >= row_blocks(g) * column_blocks_; ++g) task -= row_blocks(g) * column_blocks_;
    std::int64_t const blocks = row_blocks(g), rows = offsets_[g + 1] - offsets_[g];
    std::int64_t const size = round_up(ceil_div(rows, blocks), blocking<S>::lanes);
    std::int64_t const first = std::min(rows, task % blocks * size), col = task / blocks * blocking<S>::cols;
    return {g, offsets_[g] + first, std::min(size, rows - first), col, std::min(blocking<S>::cols, n_ - col)};
  }

 private:
  std::int64_t row_blocks(std::int64_t g) const { return ceil_div(offsets_[g + 1] - offsets_[g], most_rows_); }

  std::int64_t groups_;
  std::int64_t const* offsets_;
  std::int64_t n_, column_blocks_, most_rows_ = blocking<S>::rows;
};

/// c(i, j) = chain over k of narrow(i, k) * wide(k, j), from c(i, j) if `resume`, else from 0. wide is packed
/// [k][Vectors * lanes]; narrow is packed [k][narrow], or rows of k at distance `stride`.
template <class S, int Vectors, bool Packed>
void micro_kernel(std::int64_t depth, S const* narrow, [[maybe_unused]] std::int64_t stride, S const* wide, S* c,
                  std::int64_t c_stride, bool resume) {
  constexpr int rows = blocking<S>::narrow, lanes = simd::lanes<S>;
  constexpr std::size_t high = rows, across = Vectors;  // as array extents
  simd::vec<S> sum[high][across];
  MOIETY_UNROLL(8)
  for (int i = 0; i < rows; ++i) {
    MOIETY_UNROLL(3)
    for (int j = 0; j < Vectors; ++j) sum[i][j] = resume ? simd::load(c + i * c_stride + j * lanes) : simd::zero<S>();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    simd::vec<S> right[across];
    MOIETY_UNROLL(3)
    for (int j = 0; j < Vectors; ++j) right[j] = simd::load(wide + j * lanes);
    MOIETY_UNROLL(8)
    for (int i = 0; i < rows; ++i) {
      simd::vec<S> const left = simd::broadcast(Packed ? narrow[i] : narrow[i * stride]);
      MOIETY_UNROLL(3)
      for (int j = 0; j < Vectors; ++j) sum[i][j] = simd::fma(left, right[j], sum[i][j]);
    }
    wide += Vectors * lanes;
    narrow += Packed ? rows : 1;
  }
  MOIETY_UNROLL(8)
  for (int i = 0; i < rows; ++i) {
    MOIETY_UNROLL(3)
    for (int j = 0; j < Vectors; ++j) simd::store(c + i * c_stride + j * lanes, sum[i][j]);
  }
}

template <class S, bool Packed>
void micro_kernel(int vectors, std::int64_t depth, S const* narrow, std::int64_t stride, S const* wide, S* c,
                  std::int64_t c_stride, bool resume) {
  switch (vectors) {
    case 1: return micro_kernel<S, 1, Packed>(depth, narrow, stride, wide, c, c_stride, resume);
    case 2: return micro_kernel<S, 2, Packed>(depth, narrow, stride, wide, c, c_stride, resume);
    default: return micro_kernel<S, 3, Packed>(depth, narrow, stride, wide, c, c_stride, resume);
  }
}

/// Packs rows [row, row + rows) of a, columns [k0, k0 + depth), as a wide operand whose lanes are the rows.
template <class S, class A>
void pack_transposed(rows_of<A> a, std::int64_t row, std::int64_t rows, std::int64_t k0, std::int64_t depth, S* to) {
  constexpr std::int64_t lanes = simd::lanes<S>;
  panels<S> const cut(rows);
  for (std::int64_t p = 0; p < cut.count; ++p) {
    std::int64_t const width = cut.vectors(p) * lanes;
    for (int v = 0; v < cut.vectors(p); ++v) {
      std::int64_t const first = cut.first(p) + v * lanes, present = std::min(lanes, rows - first);
      A const* from[static_cast<std::size_t>(lanes)];
      for (std::int64_t i = 0; i < lanes; ++i) from[i] = a.row(row + first + std::min(i, present - 1)) + k0;
      S* const column = to + cut.first(p) * depth + v * lanes;
      simd::square<S> square;
      std::int64_t k = 0;
      for (; k + lanes <= depth; k += lanes) {
        for (std::int64_t i = 0; i < lanes; ++i) square[i] = simd::load_as<S>(from[i] + k);
        simd::transpose<S>(square);
        for (std::int64_t i = 0; i < lanes; ++i) simd::store(column + (k + i) * width, square[i]);
      }
      if (k == depth) continue;
      for (std::int64_t i = 0; i < lanes; ++i) square[i] = simd::load_first<S>(from[i] + k, depth - k);
      simd::transpose<S>(square);
      for (std::int64_t i = 0; i < depth - k; ++i) simd::store(column + (k + i) * width, square[i]);
    }
  }
}

/// Copies count values, widened to S.
template <class S, class T> void widen(T const* from, std::int64_t count, S* to) {
  constexpr std::int64_t lanes = simd::lanes<S>;
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) simd::store(to + i, simd::load_as<S>(from + i));
  for (; i < count; ++i) to[i] = static_cast<S>(from[i]);
}

/// Rows that packing asks the cache for ahead of time: a block's rows lie in different pages, where no hardware does.
inline constexpr std::int64_t prefetch_rows = 8;

/// Packs `depth` rows (row(k) gives each) of `cols` values as a wide operand whose lanes are the columns.
template <class S, class Row> void pack_rows(Row const& row, std::int64_t depth, std::int64_t cols, S* to) {
  constexpr std::int64_t lanes = simd::lanes<S>;
  panels<S> const cut(cols);
  for (std::int64_t k = 0; k < depth; ++k) {
    auto const* const from = row(k);
    auto const* const soon = row(std::min(k + prefetch_rows, depth - 1));
    for (std::int64_t p = 0; p < cut.count; ++p) {
      std::int64_t const width = cut.vectors(p) * lanes;
      S* const out = to + cut.first(p) * depth + k * width;
      for (std::int64_t v = 0; v < width; v += lanes) {
        std::int64_t const first = cut.first(p) + v;
        __builtin_prefetch(soon + std::min(first, cols - 1));
        bool const whole = first + lanes <= cols;
        simd::store(out + v, whole ? simd::load_as<S>(from + first) : simd::load_first<S>(from + first, cols - first));
      }
    }
  }
}

/// Distance between strips of a packed narrow operand: off a power of two, which would share one set of the cache.
template <class S> constexpr std::int64_t strip_stride(std::int64_t depth) {
  return blocking<S>::narrow * depth + 64 / static_cast<std::int64_t>(sizeof(S));
}

/// Packs `depth` rows of `cols` values in strips of `narrow` columns, [strip][k][narrow], zeros on the right.
template <class S, class Row> void pack_narrow(Row const& row, std::int64_t depth, std::int64_t cols, S* to) {
  constexpr std::int64_t narrow = blocking<S>::narrow, step = std::max<std::int64_t>(narrow, simd::lanes<S>);
  alignas(64) S run[static_cast<std::size_t>(step)];
  for (std::int64_t k = 0; k < depth; ++k) {
    auto const* const from = row(k);
    auto const* const soon = row(std::min(k + prefetch_rows, depth - 1));
    for (std::int64_t first = 0; first < cols; first += step) {
      __builtin_prefetch(soon + first);
      std::int64_t const present = std::min(step, cols - first);
      if (present < step) std::fill_n(run, step, S{0});
      present < step ? widen(from + first, present, run) : widen(from + first, step, run);
      for (std::int64_t i = 0; i < present; i += narrow)
        std::memcpy(to + (first + i) / narrow * strip_stride<S>(depth) + k * narrow, run + i, narrow * sizeof(S));
    }
  }
}

/// `narrow` rows for the micro kernel, of which the first `present` exist.
template <class S> struct narrow_rows {
  S const* data;
  std::int64_t stride;
};

/// Copies rows (row(i) gives each, `depth` long) into `space`, zeros below them.
template <class S, class Row>
narrow_rows<S> copy_narrow(Row const& row, std::int64_t present, std::int64_t depth, S* space) {
  constexpr std::int64_t stride = blocking<S>::depth;
  for (std::int64_t i = 0; i < blocking<S>::narrow; ++i) {
    if (i < present)
      widen(row(i), depth, space + i * stride);
    else
      std::fill_n(space + i * stride, depth, S{0});
  }
  return {space, stride};
}

/// Turns the sums of nt, M matrices of [column][row], into rows and hands them to the epilogue.
template <class S, std::size_t M, class Epilogue>
void hand_over(tile const& t, S const* sums, std::int64_t stride, S* stage, Epilogue const& epilogue) {
  constexpr std::int64_t lanes = simd::lanes<S>, cols = blocking<S>::cols, stage_stride = cols + lanes;
  for (std::int64_t first = 0; first < t.rows; first += lanes) {
    for (std::int64_t m = 0; m < static_cast<std::int64_t>(M); ++m)
      for (std::int64_t c = 0; c < t.cols; c += lanes) {
        simd::square<S> square;
        for (std::int64_t i = 0; i < lanes; ++i) square[i] = simd::load(sums + (m * cols + c + i) * stride + first);
        simd::transpose<S>(square);
        for (std::int64_t i = 0; i < lanes; ++i) simd::store(stage + (m * lanes + i) * stage_stride + c, square[i]);
      }
    for (std::int64_t i = 0; i < std::min(lanes, t.rows - first); ++i) {
      std::array<S const*, M> rows;
      for (std::size_t m = 0; m < M; ++m) rows[m] = stage + (static_cast<std::int64_t>(m) * lanes + i) * stage_stride;
      epilogue(t.group, t.row + first + i, t.col, t.cols, rows);
    }
  }
}

template <class S, class A, class B, std::size_t M, class Epilogue>
void nt_tile(std::span<std::byte> scratch, tile const& t, rows_of<A> a, std::array<grouped_matrix<B const>, M> const& w,
             std::int64_t k, Epilogue const& epilogue) {
  using sizes = blocking<S>;
  carver memory(scratch);
  S* const wide = memory.take<S>(sizes::rows * sizes::depth);
  S* const space = memory.take<S>(sizes::narrow * sizes::depth);
  S* const stage = memory.take<S>(static_cast<std::int64_t>(M) * sizes::lanes * (sizes::cols + sizes::lanes));
  S* const sums = memory.take<S>(static_cast<std::int64_t>(M) * sizes::cols * sizes::rows);
  panels<S> const cut(t.rows);
  if (k == 0) std::fill_n(sums, static_cast<std::int64_t>(M) * sizes::cols * cut.lanes(), S{0});
  for (std::int64_t k0 = 0; k0 < k; k0 += sizes::depth) {
    std::int64_t const depth = std::min(sizes::depth, k - k0);
    pack_transposed(a, t.row, t.rows, k0, depth, wide);
    for (std::int64_t c = 0; c < t.cols; c += sizes::narrow)
      for (std::size_t m = 0; m < M; ++m) {
        std::int64_t const present = std::min<std::int64_t>(sizes::narrow, t.cols - c), stride = w[m].row_stride;
        B const* const from = w[m].group(t.group) + (t.col + c) * stride + k0;
        narrow_rows<S> rows{};
        if constexpr (std::is_same_v<S, B>) rows = {from, stride};
        if (!std::is_same_v<S, B> || present < sizes::narrow)
          rows = copy_narrow<S>([&](std::int64_t i) { return from + i * stride; }, present, depth, space);
        S* const out = sums + (static_cast<std::int64_t>(m) * sizes::cols + c) * cut.lanes();
        for (std::int64_t p = 0; p < cut.count; ++p)
          micro_kernel<S, false>(cut.vectors(p), depth, rows.data, rows.stride, wide + cut.first(p) * depth,
                                 out + cut.first(p), cut.lanes(), k0 > 0);
      }
  }
  hand_over<S, M>(t, sums, cut.lanes(), stage, epilogue);
}

template <class S, class A, class B, std::size_t M, class Epilogue>
void nn_tile(std::span<std::byte> scratch, tile const& t, std::array<rows_of<A>, M> const& a,
             std::array<grouped_matrix<B const>, M> const& w, std::int64_t k, Epilogue const& epilogue) {
  using sizes = blocking<S>;
  carver memory(scratch);
  S* const wide = memory.take<S>(sizes::cols * sizes::depth);
  S* const space = memory.take<S>(sizes::narrow * sizes::depth);
  S* const sums = memory.take<S>(sizes::rows * sizes::cols);
  panels<S> const cut(t.cols);
  if (k == 0) std::fill_n(sums, sizes::rows * cut.lanes(), S{0});
  bool resume = false;
  for (std::size_t m = 0; m < M; ++m)
    for (std::int64_t k0 = 0; k0 < k; k0 += sizes::depth, resume = true) {
      std::int64_t const depth = std::min(sizes::depth, k - k0);
      B const* const from = w[m].group(t.group) + k0 * w[m].row_stride + t.col;
      pack_rows<S>([&](std::int64_t i) { return from + i * w[m].row_stride; }, depth, t.cols, wide);
      for (std::int64_t r = 0; r < t.rows; r += sizes::narrow) {
        std::int64_t const present = std::min<std::int64_t>(sizes::narrow, t.rows - r);
        narrow_rows<S> rows{};
        if constexpr (std::is_same_v<S, A>) rows = {a[m].row(t.row + r) + k0, a[m].stride};
        if (!std::is_same_v<S, A> || a[m].index != nullptr || present < sizes::narrow)
          rows = copy_narrow<S>([&](std::int64_t i) { return a[m].row(t.row + r + i) + k0; }, present, depth, space);
        for (std::int64_t p = 0; p < cut.count; ++p)
          micro_kernel<S, false>(cut.vectors(p), depth, rows.data, rows.stride, wide + cut.first(p) * depth,
                                 sums + r * cut.lanes() + cut.first(p), cut.lanes(), resume);
      }
    }
  for (std::int64_t r = 0; r < t.rows; ++r)
    epilogue(t.group, t.row + r, t.col, t.cols, static_cast<S const*>(sums + r * cut.lanes()));
}

/// Asks the cache for elements [first, last) of a row that will be written.
template <class S> void prefetch_row(S const* row, std::int64_t first, std::int64_t last) {
  for (; first < last; first += 64 / static_cast<std::int64_t>(sizeof(S))) __builtin_prefetch(row + first, 1);
}

/// One micro kernel on the output of tn; at its edges through a tile of its own.
template <class S>
void tn_micro(int vectors, std::int64_t depth, S const* narrow, S const* wide, S* out, std::int64_t out_stride,
              std::int64_t rows, std::int64_t cols, S* edge, bool resume) {
  std::int64_t const width = vectors * blocking<S>::lanes;
  if (rows >= blocking<S>::narrow && cols >= width)
    return micro_kernel<S, true>(vectors, depth, narrow, 0, wide, out, out_stride, resume);
  rows = std::min<std::int64_t>(rows, blocking<S>::narrow), cols = std::min(cols, width);
  if (resume)
    for (std::int64_t i = 0; i < rows; ++i) std::copy_n(out + i * out_stride, cols, edge + i * width);
  micro_kernel<S, true>(vectors, depth, narrow, 0, wide, edge, width, resume);
  for (std::int64_t i = 0; i < rows; ++i) std::copy_n(edge + i * width, cols, out + i * out_stride);
}

/// Rows [i0, i0 + ni), columns [j0, j0 + nj) of one group's output, from its rows [row, row + rows).
struct tn_block {
  std::int64_t row, rows, i0, ni, j0, nj;
};

template <class S, class A, class B>
void tn_tile(std::span<std::byte> scratch, tn_block const& t, rows_of<A> a, rows_of<B> b, S* out,
             std::int64_t out_stride, bool accumulate) {
  using sizes = blocking<S>;
  carver memory(scratch);
  S* const wide = memory.take<S>(sizes::cols * sizes::depth);
  S* const narrow = memory.take<S>(sizes::rows / sizes::narrow * strip_stride<S>(sizes::depth));
  S* const edge = memory.take<S>(sizes::narrow * sizes::most_vectors * sizes::lanes);
  std::fill_n(edge, sizes::narrow * sizes::most_vectors * sizes::lanes, S{0});
  out += t.i0 * out_stride + t.j0;
  if (t.rows == 0 && !accumulate)
    for (std::int64_t i = 0; i < t.ni; ++i) std::fill_n(out + i * out_stride, t.nj, S{0});
  panels<S> const cut(t.nj);
  for (std::int64_t r0 = 0; r0 < t.rows; r0 += sizes::depth) {
    std::int64_t const depth = std::min(sizes::depth, t.rows - r0);
    pack_rows<S>([&](std::int64_t r) { return b.row(t.row + r0 + r) + t.j0; }, depth, t.nj, wide);
    pack_narrow<S>([&](std::int64_t r) { return a.row(t.row + r0 + r) + t.i0; }, depth, t.ni, narrow);
    for (std::int64_t i = 0; i < t.ni; i += sizes::narrow)
      for (std::int64_t p = 0; p < cut.count; ++p) {
        std::int64_t const next = std::min(i + sizes::narrow, t.ni), last = std::min(next + sizes::narrow, t.ni);
        for (std::int64_t row = next; row < last; ++row)  // the same panel, one strip further down
          prefetch_row(out + row * out_stride, cut.first(p), std::min(cut.first(p + 1), t.nj));
        tn_micro<S>(cut.vectors(p), depth, narrow + i / sizes::narrow * strip_stride<S>(depth),
                    wide + cut.first(p) * depth, out + i * out_stride + cut.first(p), out_stride, t.ni - i,
                    t.nj - cut.first(p), edge, accumulate || r0 > 0);
      }
  }
}

/// What a tile of any direction takes at most from a worker's scratch, with M matrices side by side.
template <class S, std::size_t M> constexpr std::int64_t scratch_needed() {
  using sizes = blocking<S>;
  constexpr auto m = static_cast<std::int64_t>(M);
  std::int64_t const elements = (sizes::rows + sizes::cols + sizes::narrow) * sizes::depth +
                                m * sizes::lanes * (sizes::cols + sizes::lanes) + m * sizes::cols * sizes::rows;
  return elements * static_cast<std::int64_t>(sizeof(S)) + 8192;
}

}  // namespace moiety::inline MOIETY_ABI::kernels::host_gemm

namespace moiety::inline MOIETY_ABI::kernels {

template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a,
                     std::array<grouped_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  static_assert(host_gemm::scratch_needed<S, M>() <= Engine::scratch_bytes);
  host_gemm::tile_list<S> const tiles(groups, offsets, n, engine.threads());
  engine.parallel(tiles.count(), [&](std::int64_t task, int worker) {
    host_gemm::nt_tile<S>(engine.scratch(worker), tiles[task], a, w, k, epilogue);
  });
}

template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nn(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<A>, M> const& a, std::array<grouped_matrix<B const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue) {
  static_assert(host_gemm::scratch_needed<S, 1>() <= Engine::scratch_bytes);
  host_gemm::tile_list<S> const tiles(groups, offsets, n, engine.threads());
  engine.parallel(tiles.count(), [&](std::int64_t task, int worker) {
    host_gemm::nn_tile<S>(engine.scratch(worker), tiles[task], a, w, k, epilogue);
  });
}

template <class S, class Engine, class A, class B>
void grouped_gemm_tn(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a, rows_of<B> b,
                     grouped_matrix<S> out, std::int64_t n, std::int64_t k, bool accumulate) {
  using sizes = host_gemm::blocking<S>;
  static_assert(host_gemm::scratch_needed<S, 1>() <= Engine::scratch_bytes);
  std::int64_t const down = host_gemm::ceil_div(n, sizes::rows), across = host_gemm::ceil_div(k, sizes::cols);
  engine.parallel(groups * down * across, [&](std::int64_t task, int worker) {
    std::int64_t const g = task / (down * across), i = task / across % down * sizes::rows;
    std::int64_t const j = task % across * sizes::cols;
    host_gemm::tn_block const block{offsets[g], offsets[g + 1] - offsets[g], i, std::min(sizes::rows, n - i),
                                    j,          std::min(sizes::cols, k - j)};
    host_gemm::tn_tile<S>(engine.scratch(worker), block, a, b, out.group(g), out.row_stride, accumulate);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
