// SPDX-License-Identifier: Apache-2.0
// Grouped matrix products on the host, see kernels/grouped_gemm.hpp for what they compute and promise.
//
// All directions reduce to the micro kernel, a few narrow rows against a wide operand in panels:
//
//                      wide operand                          narrow operand                  sums of a tile
//   nt                 rows of a, transposed (lane = row)    weights, read in place          [column][row], turned
//   nt, few rows       weights, transposed (lane = column)   rows of a, in place             [row][column]
//   nt, short sums     weights, transposed (lane = column)   rows of a, in place             [row][column]
//   nn                 weights, copied in passing            rows of a, in place             [row][column]
//   transposed         nt packs as nn does and nn as nt does with short sums
//   tn                 rows of b, copied (lane = j)          rows of a, packed in strips     the output
//
// Work is one list of tiles (group, column block, row block), sorted by group. The sum over k runs in blocks of steps
// whose partial sums are stored and reloaded unrounded, so blocks change no bit.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/kernels/grouped_gemm.hpp>
#include <moiety/kernels/host/micro_kernel.hpp>
#include <moiety/kernels/host/panels.hpp>
#include <moiety/kernels/host/simd.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace moiety::inline MOIETY_ABI::kernels::host_gemm {

/// Most rows and columns of a tile; `wide`: columns where rows are few.
struct tile_shape {
  std::int64_t rows, cols, wide;
};

/// Sizes of tiles: an eighth to a half of a second-level cache of 1 MiB for each operand.
template <class U> struct blocking {
  static constexpr std::int64_t rows = 256;                                           // most rows of a tile
  static constexpr std::int64_t cols = column_block<sum_of<U>>;                       // least columns of a whole tile
  static constexpr std::int64_t steps = 1024 / static_cast<std::int64_t>(sizeof(U));  // of a block
  static constexpr std::int64_t values = steps * values_per_unit<U>;                  // the same in values of k
  static constexpr std::int64_t nt_steps = 4 * steps, nt_values = 4 * values;         // of nt
  static constexpr std::int64_t tn_blocks = 4, tn_cols = 4 * cols;  // of tn: packed blocks, most columns

  static constexpr tile_shape nn = {rows, cols, 8 * cols}, packed = {rows, cols, cols};
  /// nt of so many matrices. Long sums: rows are packed once for all columns of a tile, which has few of them and is broad.
  static constexpr tile_shape nt(std::size_t matrices, bool long_sums) {
    std::int64_t const times = (long_sums ? 4 : 2) / static_cast<std::int64_t>(matrices);
    return {long_sums ? rows / 2 : rows, std::max<std::int64_t>(times, 1) * cols, 8 * cols};
  }
  static_assert(rows % (2 * simd::lanes<U>) == 0 && cols % simd::lanes<U> == 0 && rows % (2 * most_narrow) == 0);
};

/// Rows of a tile up to which weights are used as they lie, and not packed: one pass over them is all there is.
inline constexpr std::int64_t few_rows = most_narrow;

/// Whether nt packs the weights instead of the rows: where sums are short and rows many, turning the results costs more.
template <class U> constexpr bool short_sums(std::int64_t rows, std::int64_t k) {
  return steps_of<U>(k) <= blocking<U>::steps && rows >= std::max<std::int64_t>(128, steps_of<U>(k));
}

/// What lies there.
template <class T, std::size_t M>
std::array<grouped_matrix<T>, M> lying(std::array<transposed_matrix<T>, M> const& matrices) {
  std::array<grouped_matrix<T>, M> all;
  for (std::size_t m = 0; m < M; ++m) all[m] = matrices[m].lying();
  return all;
}

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

/// A tile of the work list.
struct tile {
  std::int64_t group, row, rows, col, cols;
  bool more_rows = false;  // whether the next tile is of the same columns
};

/// The list of tiles of nt and nn: groups, in each column blocks, in each row blocks of near equal size. Tiles of few rows
/// are wide, so that weights are read as they lie. Tiles shrink until every thread has several.
template <class U> class tile_list {
 public:
  tile_list(std::int64_t groups, std::int64_t const* offsets, std::int64_t n, int threads, tile_shape const& most)
      : groups_(groups), offsets_(offsets), n_(n), most_(most) {
    std::int64_t const wanted = threads > 1 ? 4 * std::int64_t{threads} : 0;
    while (count() < wanted && most_.wide > blocking<U>::cols) {
      most_.wide /= 2;
      most_.cols = std::min(most_.cols, most_.wide);
    }
    while (count() < wanted && most_.rows > 2 * simd::lanes<U>) most_.rows /= 2;
  }

  std::int64_t count() const {
    std::int64_t tiles = 0;
    for (std::int64_t g = 0; g < groups_; ++g) tiles += row_blocks(g) * column_blocks(g);
    return tiles;
  }

  tile operator[](std::int64_t task) const {
    std::int64_t g = 0;
    for (; task >= row_blocks(g) * column_blocks(g); ++g) task -= row_blocks(g) * column_blocks(g);
    std::int64_t const blocks = row_blocks(g), size = round_up(ceil_div(rows(g), blocks), simd::lanes<U>);
    std::int64_t const first = std::min(rows(g), task % blocks * size), col = task / blocks * cols(g);
    return {g,   offsets_[g] + first,         std::min(size, rows(g) - first),
            col, std::min(cols(g), n_ - col), first + size < rows(g)};
  }

 private:
  std::int64_t rows(std::int64_t g) const { return offsets_[g + 1] - offsets_[g]; }
  std::int64_t row_blocks(std::int64_t g) const { return ceil_div(rows(g), most_.rows); }
  std::int64_t cols(std::int64_t g) const { return rows(g) <= few_rows ? most_.wide : most_.cols; }
  std::int64_t column_blocks(std::int64_t g) const { return ceil_div(n_, cols(g)); }

  std::int64_t groups_;
  std::int64_t const* offsets_;
  std::int64_t n_;
  tile_shape most_;
};

/// Copies the units of `count` values, a zero after an odd number of bf16.
template <class U, class T> void copy_units(T const* from, std::int64_t count, U* to) {
  constexpr std::int64_t values = simd::lanes<U> * values_per_unit<U>;
  std::int64_t k = 0;
  for (; k + values <= count; k += values, to += simd::lanes<U>) simd::store<U>(to, simd::load_as<U>(from + k));
  if (k == count) return;
  simd::vec<U> const rest = simd::load_first<U>(from + k, count - k);
  std::memcpy(static_cast<void*>(to), &rest, static_cast<std::size_t>(steps_of<U>(count - k)) * sizeof(U));
}

/// Rows row, row + 1, … of `a`, from column k on.
template <class A> rows_of<A> rows_from(rows_of<A> a, std::int64_t row, std::int64_t k) {
  if (a.index != nullptr) return {a.data + k, a.stride, a.index + row};
  return {a.data + row * a.stride + k, a.stride};
}

/// Distance between copied rows, in units: off a power of two, which would share one set of the cache.
template <class U>
inline constexpr std::int64_t copied_stride = blocking<U>::nt_steps + 64 / static_cast<std::int64_t>(sizeof(U));

/// Rows [first, first + present) of `a`, `count` values long, for a micro kernel of `high` rows: in place if all are there
/// and hold units, else copied into `space`.
template <class U, class A>
strided_rows<U> narrow_rows(rows_of<A> a, std::int64_t first, std::int64_t present, std::int64_t high,
                            std::int64_t count, U* space) {
  bool const holds_units = sizeof(A) * values_per_unit<U> == sizeof(U) && count % values_per_unit<U> == 0;
  if (holds_units && a.index == nullptr && present == high)
    return {reinterpret_cast<std::byte const*>(a.row(first)), a.stride * static_cast<std::int64_t>(sizeof(A))};
  for (std::int64_t i = 0; i < present; ++i) copy_units<U>(a.row(first + i), count, space + i * copied_stride<U>);
  return {reinterpret_cast<std::byte const*>(space), copied_stride<U> * static_cast<std::int64_t>(sizeof(U))};
}

/// What follows a block: the rows that the next one is packed from, or its steps of packed panels. The cache is asked for it
/// in the last strips of the block: sooner, it would push out what the block still needs.
template <class U> struct upcoming {
  std::byte const* first = nullptr;                              // null: none
  std::int64_t rows = 0, bytes = 0, stride = 0;                  // rows, of so many bytes, at a distance
  std::int64_t panel_steps = 0, first_step = 0, next_steps = 0;  // panels: steps of each, and those that follow
  static constexpr std::int64_t asking = 3;                      // strips

  /// What strip i of n asks for while it passes over panel p.
  prefetch_rows<2, 2> share(panel_cut<U> const& cut, std::int64_t p, std::int64_t i, std::int64_t n,
                            std::int64_t steps) const {
    std::int64_t const last = std::min(n, asking);
    i -= n - last;
    if (first == nullptr || i < 0) return {};
    if (rows > 0)
      return prefetch_rows<2, 2>::share(first, rows, bytes, stride, i * cut.count + p, last * cut.count, steps);
    constexpr auto unit = static_cast<std::int64_t>(sizeof(U));
    return prefetch_rows<2, 2>::share(first + (cut.first(p) * panel_steps + cut.width(p) * first_step) * unit, 1,
                                      cut.width(p) * next_steps * unit, 0, i, last, steps);
  }
};

/// A block of steps of a wide operand, in panels.
template <class U> struct panel_block {
  panel_cut<U> cut;
  U const* data;
  std::int64_t steps;           // from one panel's first step to the next panel's, per lane
  std::int64_t first_step = 0;  // of the block, in packed panels of all steps
  upcoming<U> soon{};
  bool half_last = false;  // the last register of several is half empty

  U const* panel(std::int64_t p) const { return data + cut.first(p) * steps + first_step * cut.width(p); }
};

/// sums(i, j) = chain over the block's steps of row i times panels, from what is there if `resume`.
template <class U, class A>
void multiply_rows(rows_of<A> a, std::int64_t rows, std::int64_t count, panel_block<U> const& block, sum_of<U>* sums,
                   bool resume, U* space) {
  std::int64_t const stride = block.cut.lanes(), steps = steps_of<U>(count), strips = ceil_div(rows, most_narrow);
  for (std::int64_t r = 0; r < rows; r += most_narrow) {
    std::int64_t const present = std::min<std::int64_t>(most_narrow, rows - r);
    auto const strip = narrow_rows<U>(a, r, present, kernel_rows(present), count, space);
    for (std::int64_t p = 0; p < block.cut.count; ++p) {
      sum_of<U>* const out = sums + r * stride + block.cut.first(p);
      auto const product = [&](auto soon) {
        tile_sums<sum_of<U>> const to{resume ? out : nullptr, stride, out, stride};
        // The strips that are left out are so in each block with another behind it: none goes on from a half by a whole kernel.
        if constexpr (simd::has_halves && !std::same_as<decltype(soon), prefetch_rows<2, 2>>)
          if (block.half_last && p + 1 == block.cut.count && kernel_rows(present) == most_narrow)
            return half_kernel<U>(block.cut.vectors(p), steps, strip, block.panel(p), to, soon);
        micro_kernel<U>(present, block.cut.vectors(p), steps, strip, block.panel(p), to, soon);
      };
      auto const next_rows = [&] {
        return prefetch_rows<3, 1>::share(reinterpret_cast<std::byte const*>(a.row(r + most_narrow)), most_narrow,
                                          count * static_cast<std::int64_t>(sizeof(A)),
                                          a.stride * static_cast<std::int64_t>(sizeof(A)), 0, 1, steps);
      };
      // The last panel of a strip asks for the rows of the next strip.
      bool const ask_rows = p + 1 == block.cut.count && a.index == nullptr && r + 2 * most_narrow <= rows;
      auto const ask_block = block.soon.share(block.cut, p, r / most_narrow, strips, steps);
      if (ask_block.row != nullptr && ask_rows)
        product(prefetch_both<prefetch_rows<2, 2>, prefetch_rows<3, 1>>{ask_block, next_rows()});
      else if (ask_block.row != nullptr)
        product(ask_block);
      else if (ask_rows)
        product(next_rows());
      else
        product(no_prefetch{});
    }
  }
}

/// A block of rows where they lie, `cols` columns of them.
template <class U, class B> struct lying_block : panel_block<U> {
  rows_of<B> rows;
  std::int64_t cols;
  U* to;  // where its panels go
};

/// The same, of more than most_narrow rows: the first of them pack the block in passing, for those behind.
template <class U, class A, class B>
void multiply_rows(rows_of<A> a, std::int64_t rows, std::int64_t count, lying_block<U, B> const& block, sum_of<U>* sums,
                   bool resume, U* space) {
  std::int64_t const stride = block.cut.lanes();
  auto const strip = narrow_rows<U>(a, 0, most_narrow, most_narrow, count, space);
  for (std::int64_t p = 0; p < block.cut.count; ++p) {
    std::int64_t const first = block.cut.first(p), width = block.cut.width(p);
    B const* const from = block.rows.data + first;
    U* const panel = block.to + first * block.steps;
    tile_sums<sum_of<U>> const to{resume ? sums + first : nullptr, stride, sums + first, stride};
    if (first + width <= block.cols) {
      micro_kernel_packing<U>(block.cut.vectors(p), block.steps, strip, from, block.rows.stride, count, panel, to);
    } else {
      pack_across(rows_of<B>{from, block.rows.stride}, count, block.cols - first, panel);
      micro_kernel<U>(most_narrow, block.cut.vectors(p), block.steps, strip, panel, to);
    }
  }
  panel_block<U> const& packed = block;
  multiply_rows<U>(rows_from(a, most_narrow, 0), rows - most_narrow, count, packed, sums + most_narrow * stride, resume,
                   space);
}

/// Calls f(first, columns) for the column blocks of a tile.
template <class S, class Function> void for_column_blocks(tile const& t, Function const& f) {
  for (std::int64_t first = 0; first < t.cols; first += column_block<S>)
    f(first, std::min(column_block<S>, t.cols - first));
}

/// The sums of a tile in rows: those of several matrices stand `apart` sums from one another.
template <class S> struct sum_rows {
  S const* data;
  std::int64_t stride, apart;
};

/// Hands rows of sums of M matrices to the epilogue, or of one.
template <bool OneSum, std::size_t M, class S, class Epilogue>
void hand_over(tile const& t, sum_rows<S> const& sums, Epilogue const& epilogue) {
  for (std::int64_t r = 0; r < t.rows; ++r)
    for_column_blocks<S>(t, [&](std::int64_t first, std::int64_t cols) {
      S const* const row = sums.data + r * sums.stride + first;
      if constexpr (OneSum) {
        epilogue(t.group, t.row + r, t.col + first, cols, row);
      } else {
        std::array<S const*, M> rows;
        for (std::size_t m = 0; m < M; ++m) rows[m] = row + static_cast<std::int64_t>(m) * sums.apart;
        epilogue(t.group, t.row + r, t.col + first, cols, rows);
      }
    });
}

/// Columns of a tile of nt with room for whole squares and strips.
template <class S> constexpr std::int64_t padded_columns(tile const& t) {
  return round_up(t.cols, std::max(simd::lanes<S>, most_narrow));
}

/// The sums of nt, matrices of [column][row]; `stage` has room for a register's rows of a column block of each.
template <class S> struct sum_columns {
  static constexpr std::int64_t stage_stride = column_block<S> + simd::lanes<S>;
  S const* data;
  std::int64_t stride, apart;
  S* stage;

  /// Rows first, first + 1, … of columns [col, col + cols) of matrix m, as many as a register has lanes, go to the stage.
  void turn(std::int64_t m, std::int64_t col, std::int64_t cols, std::int64_t first) const {
    constexpr std::int64_t lanes = simd::lanes<S>;
    S const* const from = data + m * apart + col * stride + first;
    for (std::int64_t c = 0; c < cols; c += lanes) {
      simd::square<S> square;
      for (std::int64_t i = 0; i < lanes; ++i) square[i] = simd::load(from + (c + i) * stride);
      simd::transpose<S>(square);
      for (std::int64_t i = 0; i < lanes; ++i) simd::store(stage + (m * lanes + i) * stage_stride + c, square[i]);
    }
  }
};

/// Turns the sums of M matrices into rows and hands them to the epilogue.
template <std::size_t M, class S, class Epilogue>
void hand_over(tile const& t, sum_columns<S> const& sums, Epilogue const& epilogue) {
  constexpr std::int64_t lanes = simd::lanes<S>;
  for_column_blocks<S>(t, [&](std::int64_t col, std::int64_t cols) {
    for (std::int64_t first = 0; first < t.rows; first += lanes) {
      for (std::int64_t m = 0; m < static_cast<std::int64_t>(M); ++m) sums.turn(m, col, cols, first);
      for (std::int64_t i = 0; i < std::min(lanes, t.rows - first); ++i) {
        std::array<S const*, M> rows;
        for (std::size_t m = 0; m < M; ++m)
          rows[m] = sums.stage + (static_cast<std::int64_t>(m) * lanes + i) * sums.stage_stride;
        epilogue(t.group, t.row + first + i, t.col + col, cols, rows);
      }
    }
  });
}

/// Rows of `count` values that the next block is packed from.
template <class U, class A> upcoming<U> next_rows_of(rows_of<A> a, std::int64_t rows, std::int64_t count) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(A));
  return {reinterpret_cast<std::byte const*>(a.data), rows, count * size, a.stride * size};
}

template <class U, class A, class B, std::size_t M>
sum_columns<sum_of<U>> nt_sums(std::span<std::byte> scratch, tile const& t, rows_of<A> a,
                               std::array<grouped_matrix<B const>, M> const& w, std::int64_t k) {
  using S = sum_of<U>;
  using sizes = blocking<U>;
  constexpr auto matrices = static_cast<std::int64_t>(M);
  carver memory(scratch);
  U* const wide = memory.take<U>(sizes::rows / 2 * sizes::nt_steps);
  U* const space = memory.take<U>(most_narrow * copied_stride<U>);
  S* const stage = memory.take<S>(matrices * simd::lanes<S> * sum_columns<S>::stage_stride);
  panel_cut<U> const cut(t.rows);
  std::int64_t const size = padded_columns<S>(t) * cut.lanes();
  S* const sums = memory.take<S>(matrices * size);
  if (k == 0) std::fill_n(sums, matrices * size, S{0});
  for (std::int64_t k0 = 0; k0 < k; k0 += sizes::nt_values) {
    std::int64_t const count = std::min(sizes::nt_values, k - k0);
    pack_along(rows_from(a, t.row, k0), t.rows, count, wide);
    panel_block<U> block{cut, wide, steps_of<U>(count)};
    block.half_last = t.rows > simd::lanes<U> && cut.lanes() - t.rows >= simd::lanes<U> / 2;
    for (std::size_t m = 0; m < M; ++m) {
      if (m + 1 == M && a.index == nullptr && k0 + count < k)
        block.soon = next_rows_of<U>(rows_from(a, t.row, k0 + count), t.rows, std::min(count, k - k0 - count));
      B const* const from = w[m].group(t.group) + t.col * w[m].row_stride + k0;
      multiply_rows<U>(rows_of<B>{from, w[m].row_stride}, t.cols, count, block,
                       sums + static_cast<std::int64_t>(m) * size, k0 > 0, space);
    }
  }
  return {sums, cut.lanes(), size, stage};
}

/// Rows that hold units: those of a, or copies in `space`, the last one repeated.
template <class U, class A> struct unit_rows {
  using value = std::conditional_t<sizeof(A) * values_per_unit<U> == sizeof(U), A, U>;
  value const* row[static_cast<std::size_t>(few_rows)];

  unit_rows(rows_of<A> a, std::int64_t first, std::int64_t present, [[maybe_unused]] std::int64_t k,
            [[maybe_unused]] U* space) {
    for (std::int64_t i = 0; i < few_rows; ++i) {
      std::int64_t const j = std::min(i, present - 1);
      if constexpr (std::same_as<value, A>) {
        row[i] = a.row(first + j);
      } else {
        row[i] = space + j * k;
        if (i == j) copy_units<U>(a.row(first + j), k, space + j * k);
      }
    }
  }
};

/// Whether nt_few_rows can take rows of k values: those of another type are copied.
template <class U, class A> constexpr bool few_rows_fit(std::int64_t k) {
  return std::same_as<typename unit_rows<U, A>::value, A> || k <= (1 << 20) / (few_rows * static_cast<int>(sizeof(U)));
}

/// nt for few rows: the weights are the wide operand, turned in registers on their way.
template <class U, class A, class B, std::size_t M>
sum_rows<sum_of<U>> nt_few_rows(std::span<std::byte> scratch, tile const& t, rows_of<A> a,
                                std::array<grouped_matrix<B const>, M> const& w, std::int64_t k) {
  using S = sum_of<U>;
  constexpr std::int64_t lanes = simd::lanes<U>;
  carver memory(scratch);
  std::int64_t const stride = round_up(t.cols, lanes);
  S* const sums = memory.take<S>(static_cast<std::int64_t>(M) * few_rows * stride);
  unit_rows<U, A> const rows(a, t.row, t.rows, k, memory.take<U>(0));
  auto const column = [&](std::size_t m, std::int64_t c) {
    return w[m].group(t.group) + (t.col + std::min(c, t.cols - 1)) * w[m].row_stride;
  };
  auto const from_column = [&](std::size_t m, std::int64_t c) -> upcoming_columns<B> {
    if (c >= t.cols && ++m < M) c -= t.cols;
    if (m == M || c >= t.cols) return {};
    return {column(m, c), w[m].row_stride, std::min(lanes, t.cols - c)};
  };
  // Pairs are through with a column sooner: what a full queue drops is asked for again.
  constexpr bool twice = values_per_unit<U> == 2;
  auto const soon_after = [&](std::size_t m, std::int64_t c) -> std::array<upcoming_columns<B>, 2> {
    if (!twice) return {from_column(m, c + lanes), {}};
    return {from_column(m, c + lanes + lanes / 2), from_column(m, c + lanes / 2)};
  };
  for (std::size_t m = 0; m < M; ++m)
    for (std::int64_t c = 0; c < t.cols; c += lanes) {
      B const* columns[static_cast<std::size_t>(lanes)];
      for (std::int64_t j = 0; j < lanes; ++j) columns[j] = column(m, c + j);
      S* const to = sums + static_cast<std::int64_t>(m) * few_rows * stride + c;
      with_shape(t.rows, 1,
                 [&]<int Rows, int Vectors>(std::integral_constant<int, Rows>, std::integral_constant<int, Vectors>) {
                   transposing_kernel<U, Rows>(k, rows.row, columns, to, stride, soon_after(m, c));
                 });
    }
  return {sums, stride, few_rows * stride};
}

/// nn for few rows: the weights are read as they lie, a few of their rows at a time over all columns of the tile. As in
/// panel_sums the sums of M matrices are one, or stand side by side.
template <class U, bool OneSum, class A, class B, std::size_t M>
sum_rows<sum_of<U>> nn_few_rows(std::span<std::byte> scratch, tile const& t, std::array<rows_of<A>, M> const& a,
                                std::array<grouped_matrix<B const>, M> const& w, std::int64_t k) {
  using S = sum_of<U>;
  using sizes = blocking<U>;
  constexpr std::int64_t lanes = simd::lanes<U>;
  // Rows of weights are read eight steps at a time, in whole lines: three of a row, which are asked for ahead of time, or one of
  // each of the two that pairs are made of, sixteen rows being as many as the processor foresees.
  constexpr bool pairs = values_per_unit<U> == 2;
  constexpr std::int64_t together = 8;
  carver memory(scratch);
  panel_cut<U> const cut(t.cols / lanes * lanes, pairs ? 2 : 3);
  std::int64_t const whole = cut.lanes(), stride = round_up(t.cols, lanes);
  U* const space = memory.take<U>(most_narrow * copied_stride<U>);
  U* const edge = memory.take<U>(lanes * sizes::steps);
  constexpr std::int64_t results = OneSum ? 1 : static_cast<std::int64_t>(M);
  S* const sums = memory.take<S>(results * few_rows * stride);
  if (k == 0) std::fill_n(sums, results * few_rows * stride, S{0});
  bool resume = false;
  for (std::size_t m = 0; m < M; ++m) {
    S* const out = sums + (OneSum ? 0 : static_cast<std::int64_t>(m) * few_rows * stride);
    if (!OneSum) resume = false;
    for (std::int64_t k0 = 0; k0 < k; k0 += sizes::values) {
      std::int64_t const count = std::min(sizes::values, k - k0), steps = steps_of<U>(count);
      auto strip = narrow_rows<U>(rows_from(a[m], t.row, k0), 0, t.rows, kernel_rows(t.rows), count, space);
      B const* const from = w[m].group(t.group) + k0 * w[m].row_stride + t.col;
      auto const sums_at = [&](std::int64_t col, bool from_there) {
        return tile_sums<S>{from_there ? out + col : nullptr, stride, out + col, stride};
      };
      auto const soon_after = [&](std::int64_t first, std::int64_t col) {
        if constexpr (pairs)
          return no_prefetch{};
        else
          return prefetch_stream<3>{
              reinterpret_cast<std::byte const*>(from + (first + together) * w[m].row_stride + col),
              w[m].row_stride * static_cast<std::int64_t>(sizeof(B)), 64};
      };
      if (whole < t.cols) {
        pack_across(rows_of<B>{from + whole, w[m].row_stride}, count, t.cols - whole, edge);
        micro_kernel<U>(t.rows, 1, steps, strip, edge, sums_at(whole, resume));
      }
      for (std::int64_t s = 0; s < steps; s += together, resume = true) {
        std::int64_t const first = s * values_per_unit<U>;
        B const* const rows = from + first * w[m].row_stride;
        if (t.rows == 1 && s + together <= steps) {
          auto const along = [&]<int Vectors>(std::integral_constant<int, Vectors>, std::int64_t col) {
            rows_in_place<U, B, Vectors> const wide{rows, w[m].row_stride, count - first};
            return sweep<U, static_cast<int>(together)>(strip, wide, col, whole, out, resume);
          };
          along(std::integral_constant<int, 1>(), pairs ? along(std::integral_constant<int, 2>(), 0) : 0);
        } else {
          for (std::int64_t p = 0; p < cut.count; ++p) {
            std::int64_t const col = cut.first(p);
            micro_kernel_in_place<U>(t.rows, cut.vectors(p), std::min(together, steps - s), strip, rows + col,
                                     w[m].row_stride, count - first, sums_at(col, resume), soon_after(first, col));
          }
        }
        strip.first += together * static_cast<std::int64_t>(sizeof(U));
      }
    }
  }
  return {sums, stride, few_rows * stride};
}

/// Where panel_sums finds the weights of matrix m for a block of k, of so many steps at most: as they lie, to be packed into
/// `wide` in passing; packed into it here; or packed before.
template <class U, class B, std::size_t M> struct nn_weights {
  std::array<grouped_matrix<B const>, M> w;

  static constexpr std::int64_t steps(tile const&) { return blocking<U>::steps; }
  lying_block<U, B> operator()(tile const& t, std::size_t m, std::int64_t k0, std::int64_t count, U* wide) const {
    rows_of<B> const rows{w[m].group(t.group) + k0 * w[m].row_stride + t.col, w[m].row_stride};
    return {{panel_cut<U>(t.cols), wide, steps_of<U>(count)}, rows, t.cols, wide};
  }
};
template <class U, class B, std::size_t M> struct nt_weights {
  std::array<grouped_matrix<B const>, M> w;

  static constexpr std::int64_t steps(tile const&) { return blocking<U>::steps; }
  panel_block<U> operator()(tile const& t, std::size_t m, std::int64_t k0, std::int64_t count, U* wide) const {
    B const* const from = w[m].group(t.group) + t.col * w[m].row_stride + k0;
    pack_along(rows_of<B>{from, w[m].row_stride}, t.cols, count, wide);
    return {panel_cut<U>(t.cols), wide, steps_of<U>(count)};
  }
};
template <class U, class T, std::size_t M> struct packed_weights {
  std::array<packed_matrix<T>, M> w;
  std::int64_t k;
  int threads;

  /// Many rows are worth longer blocks: sums are loaded and stored less often.
  static constexpr std::int64_t steps(tile const& t) {
    return t.rows >= blocking<U>::rows / 2 ? blocking<U>::steps * 3 / 2 : blocking<U>::steps;
  }
  panel_block<U> operator()(tile const& t, std::size_t m, std::int64_t k0, std::int64_t count, U*) const {
    panel_cut<U> const cut(t.cols);
    std::int64_t const all = steps_of<U>(k), first = k0 / values_per_unit<U>, now = steps_of<U>(count);
    U const* const panels = reinterpret_cast<U const*>(w[m].data + t.group * w[m].group_bytes) + t.col * all;
    upcoming<U> soon{.first = reinterpret_cast<std::byte const*>(panels), .panel_steps = all};
    if (k0 + count < k) {
      soon.first_step = first + now, soon.next_steps = std::min(now, all - soon.first_step);
    } else {  // then this thread's next tile follows, if all are alike
      if (!t.more_rows) soon.first += threads * cut.lanes() * all * static_cast<std::int64_t>(sizeof(U));
      soon.next_steps = std::min(now, all);
    }
    return {cut, panels, all, first, soon};
  }
};

/// Rows times panels, straight into rows of sums: those of M matrices stand side by side, as in nt, or are one sum.
template <class U, bool OneSum, class A, std::size_t M, class Weights>
sum_rows<sum_of<U>> panel_sums(std::span<std::byte> scratch, tile const& t, std::array<rows_of<A>, M> const& a,
                               Weights const& weights, std::int64_t k) {
  using S = sum_of<U>;
  using sizes = blocking<U>;
  constexpr std::int64_t results = OneSum ? 1 : static_cast<std::int64_t>(M);
  carver memory(scratch);
  std::int64_t const stride = panel_cut<U>(t.cols).lanes(), size = round_up(t.rows, most_narrow) * stride;
  U* const wide = memory.take<U>(stride * sizes::steps);
  U* const space = memory.take<U>(most_narrow * copied_stride<U>);
  S* const sums = memory.take<S>(results * size);
  if (k == 0) std::fill_n(sums, results * size, S{0});
  std::int64_t const blocks = std::max<std::int64_t>(1, ceil_div(steps_of<U>(k), weights.steps(t)));
  std::int64_t const values = round_up(ceil_div(k, blocks), simd::lanes<U> * values_per_unit<U>);
  for (std::size_t m = 0; m < M; ++m)
    for (std::int64_t k0 = 0; k0 < k; k0 += values) {
      std::int64_t const count = std::min(values, k - k0);
      multiply_rows<U>(rows_from(a[m], t.row, k0), t.rows, count, weights(t, m, k0, count, wide),
                       sums + (OneSum ? 0 : static_cast<std::int64_t>(m) * size), k0 > 0 || (OneSum && m > 0), space);
    }
  return {sums, stride, size};
}

/// The sums of nn, or of nt where weights lie transposed.
template <class U, bool OneSum, class A, class B, std::size_t M>
sum_rows<sum_of<U>> nn_sums(std::span<std::byte> scratch, tile const& t, std::array<rows_of<A>, M> const& a,
                            std::array<grouped_matrix<B const>, M> const& w, std::int64_t k) {
  if (t.rows <= few_rows) return nn_few_rows<U, OneSum>(scratch, t, a, w, k);
  return panel_sums<U, OneSum>(scratch, t, a, nn_weights<U, B, M>{w}, k);
}

/// Rows [i0, i0 + ni), columns [j0, j0 + nj) of one group's output, from its rows [row, row + rows).
struct tn_block {
  std::int64_t row, rows, i0, ni, j0, nj;
};

/// One micro kernel on the output of tn; at its edges through a tile of its own.
template <class U, class Prefetch>
void tn_micro(int vectors, std::int64_t steps, packed_strip<U> narrow, U const* wide, tile_sums<sum_of<U>> const& sums,
              std::int64_t rows, std::int64_t cols, sum_of<U>* edge, Prefetch soon) {
  std::int64_t const width = vectors * simd::lanes<U>;
  if (rows >= most_narrow && cols >= width)
    return micro_kernel<U>(most_narrow, vectors, steps, narrow, wide, sums, soon);
  rows = std::min<std::int64_t>(rows, most_narrow), cols = std::min(cols, width);
  if (sums.from != nullptr)
    for (std::int64_t i = 0; i < rows; ++i) std::copy_n(sums.from + i * sums.from_stride, cols, edge + i * width);
  micro_kernel<U>(most_narrow, vectors, steps, narrow, wide,
                  {sums.from != nullptr ? edge : nullptr, width, edge, width});
  for (std::int64_t i = 0; i < rows; ++i) std::copy_n(edge + i * width, cols, sums.to + i * sums.to_stride);
}

/// The rows of a are packed once, a few blocks at a time, for all columns of the tile.
template <class U, class A, class B>
void tn_tile(std::span<std::byte> scratch, tn_block const& t, rows_of<A> a, rows_of<B> b, sum_of<U>* out,
             std::int64_t out_stride, bool accumulate) {
  using S = sum_of<U>;
  using sizes = blocking<U>;
  constexpr std::int64_t strips = strip_units<U>(sizes::steps, sizes::rows),
                         together = sizes::tn_blocks * sizes::values;
  // Partial sums are kept of one column block where its rows are packed together, else of all. Off a power of two, see
  // copied_stride.
  bool const one_by_one = t.rows <= together;
  std::int64_t const kept_stride = (one_by_one ? sizes::cols : sizes::tn_cols) + simd::lanes<S>;
  carver memory(scratch);
  U* const wide = memory.take<U>(sizes::cols * sizes::steps);
  U* const narrow = memory.take<U>(sizes::tn_blocks * strips);
  S* const edge = memory.take<S>(most_narrow * most_vectors * simd::lanes<U>);
  S* const partial = memory.take<S>(t.rows > sizes::values ? sizes::rows * kept_stride : 0);
  std::fill_n(edge, most_narrow * most_vectors * simd::lanes<U>, S{0});
  out += t.i0 * out_stride + t.j0;
  if (t.rows == 0 && !accumulate)
    for (std::int64_t i = 0; i < t.ni; ++i) std::fill_n(out + i * out_stride, t.nj, S{0});
  bool const stream = !accumulate && reinterpret_cast<std::uintptr_t>(out) % vector_bytes == 0 &&
                      out_stride * static_cast<std::int64_t>(sizeof(S)) % vector_bytes == 0;
  auto const multiply = [&](std::int64_t j, std::int64_t nj, std::int64_t r0, std::int64_t count, U const* strip) {
    std::int64_t const steps = steps_of<U>(count);
    bool const first = r0 == 0, last = r0 + count == t.rows, at_edge = last || (first && accumulate);
    panel_cut<U> const cut(nj);
    upcoming<U> soon;
    if (b.index == nullptr && 2 * steps >= sizes::steps && (!last || j + nj < t.nj)) {
      std::int64_t const next_j = last ? j + nj : j, next_r = last ? 0 : r0 + count;
      soon = next_rows_of<U>(rows_from(b, t.row + next_r, t.j0 + next_j), std::min(sizes::values, t.rows - next_r),
                             std::min(sizes::cols, t.nj - next_j));
    }
    pack_across(rows_from(b, t.row + r0, t.j0 + j), count, nj, wide);
    for (std::int64_t i = 0; i < t.ni; i += most_narrow)
      for (std::int64_t p = 0; p < cut.count; ++p) {
        S* const here = out + i * out_stride + j + cut.first(p);
        S* const kept = partial + i * kept_stride + (one_by_one ? 0 : j) + cut.first(p);
        tile_sums<S> const sums{first ? (accumulate ? here : nullptr) : kept, first ? out_stride : kept_stride,
                                last ? here : kept, last ? out_stride : kept_stride, last && stream};
        auto const product = [&](auto ask) {
          tn_micro<U>(cut.vectors(p), steps, packed_strip<U>{strip + i / most_narrow * strip_stride<U>(steps)},
                      wide + cut.first(p) * steps, sums, at_edge ? t.ni - i : most_narrow,
                      at_edge ? nj - cut.first(p) : cut.width(p), edge, ask);
        };
        auto const ask = soon.share(cut, p, i / most_narrow, ceil_div(t.ni, most_narrow), steps);
        if (ask.row != nullptr)
          product(ask);
        else
          product(no_prefetch{});
      }
  };
  for (std::int64_t r0 = 0; r0 < t.rows; r0 += together) {
    std::int64_t const end = std::min(t.rows, r0 + together);
    for (std::int64_t r = r0; r < end; r += sizes::values)
      pack_strips(rows_from(a, t.row + r, t.i0), std::min(sizes::values, end - r), t.ni,
                  narrow + (r - r0) / sizes::values * strips);
    for (std::int64_t j = 0; j < t.nj; j += sizes::cols)
      for (std::int64_t r = r0; r < end; r += sizes::values)
        multiply(j, std::min(sizes::cols, t.nj - j), r, std::min(sizes::values, end - r),
                 narrow + (r - r0) / sizes::values * strips);
  }
  if (stream) simd::fence_stores();
}

/// What a tile of any direction takes at most from a worker's scratch, with M matrices side by side.
template <class U, std::size_t M> constexpr std::int64_t scratch_needed() {
  using sizes = blocking<U>;
  constexpr auto m = static_cast<std::int64_t>(M), unit = static_cast<std::int64_t>(sizeof(U)),
                 sum = static_cast<std::int64_t>(sizeof(sum_of<U>));
  std::int64_t const wide = sizes::cols * sizes::steps, strips = strip_units<U>(sizes::steps, sizes::rows);
  std::int64_t const stage = m * simd::lanes<sum_of<U>> * (sizes::cols + simd::lanes<sum_of<U>>);
  std::int64_t const nt = (sizes::rows / 2 * sizes::nt_steps + most_narrow * copied_stride<U>)*unit +
                          (stage + m * sizes::nt(M, false).cols * sizes::rows) * sum;
  std::int64_t const tn =
      (wide + sizes::tn_blocks * strips) * unit + sizes::rows * (sizes::tn_cols + simd::lanes<sum_of<U>>)*sum;
  return std::max(nt, tn) + 16384;
}

/// Packs each column block of each group by pack(group, first column, columns, to).
template <class T, class Engine, class Pack>
void pack_weights(Engine& engine, std::int64_t groups, std::int64_t n, std::int64_t k, std::byte* to,
                  Pack const& pack) {
  using U = unit_of<sum_t<T>, T, T>;
  constexpr std::int64_t cols = blocking<U>::cols;
  std::int64_t const blocks = ceil_div(n, cols);
  engine.parallel(groups * blocks, [&](std::int64_t task, int) {
    std::int64_t const g = task / blocks, col = task % blocks * cols;
    pack(g, col, std::min(cols, n - col), reinterpret_cast<U*>(to + g * packed_bytes<T>(n, k)) + col * steps_of<U>(k));
  });
}

template <class S, bool OneSum, class Engine, class T, std::size_t M, class Epilogue>
void multiply_packed(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<T>, M> const& a, std::array<packed_matrix<T>, M> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue) {
  static_assert(std::same_as<S, sum_t<T>>, "packed weights are summed in the sum type of their own type.");
  using U = unit_of<S, T, T>;
  static_assert(scratch_needed<U, M>() <= Engine::scratch_bytes);
  tile_list<U> const tiles(groups, offsets, n, engine.threads(), blocking<U>::packed);
  engine.parallel(tiles.count(), [&](std::int64_t task, int worker) {
    auto const t = tiles[task];
    packed_weights<U, T, M> const weights{w, k, engine.threads()};
    hand_over<OneSum, M>(t, panel_sums<U, OneSum>(engine.scratch(worker), t, a, weights, k), epilogue);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels::host_gemm

namespace moiety::inline MOIETY_ABI::kernels {

template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a,
                     std::array<grouped_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  using U = host_gemm::unit_of<S, A, B>;
  static_assert(host_gemm::scratch_needed<U, M>() <= Engine::scratch_bytes);
  using sizes = host_gemm::blocking<U>;
  host_gemm::tile_list<U> const tiles(groups, offsets, n, engine.threads(),
                                      sizes::nt(M, host_gemm::steps_of<U>(k) > sizes::steps));
  std::array<rows_of<A>, M> rows;
  rows.fill(a);
  engine.parallel(tiles.count(), [&](std::int64_t task, int worker) {
    auto const t = tiles[task];
    auto const scratch = engine.scratch(worker);
    if (t.rows <= host_gemm::few_rows && host_gemm::few_rows_fit<U, A>(k))
      host_gemm::hand_over<false, M>(t, host_gemm::nt_few_rows<U>(scratch, t, a, w, k), epilogue);
    else if (host_gemm::short_sums<U>(t.rows, k))
      host_gemm::hand_over<false, M>(
          t, host_gemm::panel_sums<U, false>(scratch, t, rows, host_gemm::nt_weights<U, B, M>{w}, k), epilogue);
    else
      host_gemm::hand_over<M>(t, host_gemm::nt_sums<U>(scratch, t, a, w, k), epilogue);
  });
}

template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nn(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<A>, M> const& a, std::array<grouped_matrix<B const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue) {
  using U = host_gemm::unit_of<S, A, B>;
  static_assert(host_gemm::scratch_needed<U, 1>() <= Engine::scratch_bytes);
  host_gemm::tile_list<U> const tiles(groups, offsets, n, engine.threads(), host_gemm::blocking<U>::nn);
  engine.parallel(tiles.count(), [&](std::int64_t task, int worker) {
    auto const t = tiles[task];
    host_gemm::hand_over<true, M>(t, host_gemm::nn_sums<U, true>(engine.scratch(worker), t, a, w, k), epilogue);
  });
}

template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nt(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a,
                     std::array<transposed_matrix<B const>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  using U = host_gemm::unit_of<S, A, B>;
  static_assert(host_gemm::scratch_needed<U, M>() <= Engine::scratch_bytes);
  host_gemm::tile_list<U> const tiles(groups, offsets, n, engine.threads(), host_gemm::blocking<U>::nn);
  auto const lying = host_gemm::lying(w);
  std::array<rows_of<A>, M> rows;
  rows.fill(a);
  engine.parallel(tiles.count(), [&](std::int64_t task, int worker) {
    auto const t = tiles[task];
    host_gemm::hand_over<false, M>(t, host_gemm::nn_sums<U, false>(engine.scratch(worker), t, rows, lying, k),
                                   epilogue);
  });
}

template <class S, class Engine, class A, class B, std::size_t M, class Epilogue>
void grouped_gemm_nn(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<A>, M> const& a, std::array<transposed_matrix<B const>, M> const& w,
                     std::int64_t n, std::int64_t k, Epilogue const& epilogue) {
  using U = host_gemm::unit_of<S, A, B>;
  static_assert(host_gemm::scratch_needed<U, 1>() <= Engine::scratch_bytes);
  host_gemm::tile_list<U> const tiles(groups, offsets, n, engine.threads(), host_gemm::blocking<U>::packed);
  auto const lying = host_gemm::lying(w);
  engine.parallel(tiles.count(), [&](std::int64_t task, int worker) {
    auto const t = tiles[task];
    host_gemm::nt_weights<U, B, M> const weights{lying};
    host_gemm::hand_over<true, M>(t, host_gemm::panel_sums<U, true>(engine.scratch(worker), t, a, weights, k),
                                  epilogue);
  });
}

template <class T> constexpr std::int64_t packed_bytes(std::int64_t n, std::int64_t k) {
  using U = host_gemm::unit_of<sum_t<T>, T, T>;
  return host_gemm::panel_cut<U>(n).lanes() * host_gemm::steps_of<U>(k) * static_cast<std::int64_t>(sizeof(U));
}

template <class Engine, class T>
void pack_nt(Engine& engine, std::int64_t groups, grouped_matrix<T const> w, std::int64_t n, std::int64_t k,
             std::byte* to) {
  host_gemm::pack_weights<T>(
      engine, groups, n, k, to, [=](std::int64_t g, std::int64_t col, std::int64_t cols, auto* out) {
        host_gemm::pack_along(rows_of<T>{w.group(g) + col * w.row_stride, w.row_stride}, cols, k, out);
      });
}

template <class Engine, class T>
void pack_nn(Engine& engine, std::int64_t groups, grouped_matrix<T const> w, std::int64_t n, std::int64_t k,
             std::byte* to) {
  host_gemm::pack_weights<T>(engine, groups, n, k, to,
                             [=](std::int64_t g, std::int64_t col, std::int64_t cols, auto* out) {
                               host_gemm::pack_across(rows_of<T>{w.group(g) + col, w.row_stride}, k, cols, out);
                             });
}

template <class S, class Engine, class T, std::size_t M, class Epilogue>
void grouped_gemm_nt(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<T> a,
                     std::array<packed_matrix<T>, M> const& w, std::int64_t n, std::int64_t k,
                     Epilogue const& epilogue) {
  std::array<rows_of<T>, M> rows;
  rows.fill(a);
  host_gemm::multiply_packed<S, false>(engine, groups, offsets, rows, w, n, k, epilogue);
}

template <class S, class Engine, class T, std::size_t M, class Epilogue>
void grouped_gemm_nn(Engine& engine, std::int64_t groups, std::int64_t const* offsets,
                     std::array<rows_of<T>, M> const& a, std::array<packed_matrix<T>, M> const& w, std::int64_t n,
                     std::int64_t k, Epilogue const& epilogue) {
  host_gemm::multiply_packed<S, true>(engine, groups, offsets, a, w, n, k, epilogue);
}

template <class S, class Engine, class A, class B>
void grouped_gemm_tn(Engine& engine, std::int64_t groups, std::int64_t const* offsets, rows_of<A> a, rows_of<B> b,
                     grouped_matrix<S> out, std::int64_t n, std::int64_t k, bool accumulate) {
  using U = host_gemm::unit_of<S, A, B>;
  using sizes = host_gemm::blocking<U>;
  static_assert(host_gemm::scratch_needed<U, 1>() <= Engine::scratch_bytes);
  std::int64_t const down = host_gemm::ceil_div(n, sizes::rows);
  std::int64_t cols = sizes::tn_cols;
  auto const tasks = [&] { return groups * down * host_gemm::ceil_div(k, cols); };
  while (engine.threads() > 1 && tasks() < 4 * engine.threads() && cols > sizes::cols) cols /= 2;
  std::int64_t const across = host_gemm::ceil_div(k, cols);
  engine.parallel(tasks(), [&](std::int64_t task, int worker) {
    std::int64_t const g = task / (down * across), i = task / across % down * sizes::rows, j = task % across * cols;
    host_gemm::tn_block const block{offsets[g], offsets[g + 1] - offsets[g], i, std::min(sizes::rows, n - i),
                                    j,          std::min(cols, k - j)};
    host_gemm::tn_tile<U>(engine.scratch(worker), block, a, b, out.group(g), out.row_stride, accumulate);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels
