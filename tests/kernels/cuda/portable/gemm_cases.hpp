// SPDX-License-Identifier: Apache-2.0
// Cases of grouped products on a device. Operands are poisoned wherever a product has no business: between strides, in rows
// that are not gathered, behind the last row. What comes out is compared with the host's product (chains of fused
// multiply-adds, bit by bit) or with sums in double (tensor cores).
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/backend/host.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>
#include <moiety/kernels/grouped_gemm.hpp>

#include <doctest/doctest.h>
#include <device_memory.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

namespace gemm_cases {

namespace mo = moiety;
using namespace moiety::kernels;
using int64 = std::int64_t;
using testing::device_values;
using testing::poison;
using testing::same_bits;

template <class T> T& at(std::vector<T>& values, int64 i) { return values[static_cast<std::size_t>(i)]; }
template <class T> T const& at(std::vector<T> const& values, int64 i) { return values[static_cast<std::size_t>(i)]; }

/// Portable kernels, or in a test of them those of the device.
inline bool of_device = false;
inline mo::cuda_engine& engine() {
  static mo::cuda_engine portable{mo::cuda{.portable = true}}, others{mo::cuda{.few_rows = 0}};
  return of_device ? others : portable;
}
inline mo::host_engine& host_engine() {
  static mo::host_engine only(mo::host{.threads = 1});
  return only;
}

/// New numbers in every run. Tests print `seed`.
inline unsigned const seed = std::random_device{}();
inline std::mt19937 random_bits{seed};
template <class T> T random_value() {
  return static_cast<T>(std::ldexp(static_cast<float>(random_bits() >> 8) + 0.5f, -23) - 1.0f);
}

/// Rows per group, and everything that varies around a product.
struct setting {
  std::vector<int64> rows;
  int64 n = 0, k = 0;
  bool gathered = false;
  int64 pad = 0;        // elements between rows
  int64 shift = 0;      // elements before the first row
  int64 slack = 0;      // of the bound on rows
  bool offsets = true;  // else null
  bool accumulate = false;
  bool mapped = false;  // stored matrices lie whole rows apart

  int64 groups() const { return static_cast<int64>(rows.size()); }
  int64 total() const { return std::accumulate(rows.begin(), rows.end(), int64{0}); }
  int64 bound() const { return total() + slack; }
  std::vector<int64> starts() const {
    std::vector<int64> all{0};
    for (int64 const count : rows) all.push_back(all.back() + count);
    return all;
  }
};

struct device_offsets {
  device_values<int64> values;
  explicit device_offsets(setting const& s) : values(s.starts()), null(!s.offsets) {}
  int64 const* get() const { return null ? nullptr : values.data(); }
  bool null;
};

/// Rows of an operand, as many as the bound says; or scattered among twice as many as there are if the setting says so.
template <class T> struct operand {
  std::vector<T> values;
  std::vector<std::int32_t> index;
  int64 shift, cols, stride;
  device_values<T> there;
  device_values<std::int32_t> index_there;

  operand(setting const& s, int64 columns)
      : values(static_cast<std::size_t>(s.shift + (s.gathered ? 2 * s.total() : s.bound()) * (columns + s.pad)),
               poison<T>()),
        index(scattered(s)),
        shift(s.shift),
        cols(columns),
        stride(columns + s.pad),
        there(int64{0}),
        index_there(index) {
    for (int64 r = 0; r < s.total(); ++r)
      for (int64 c = 0; c < cols; ++c) (*this)(r, c) = random_value<T>();
    upload();
  }
  void upload() { there = device_values<T>(values); }
  int64 place(int64 row) const { return index.empty() ? row : at(index, row); }
  T& operator()(int64 row, int64 col) { return at(values, shift + place(row) * stride + col); }
  T operator()(int64 row, int64 col) const { return at(values, shift + place(row) * stride + col); }
  rows_of<T> here() const { return {values.data() + shift, stride, index.empty() ? nullptr : index.data()}; }
  rows_of<T> view() const { return {there.data() + shift, stride, index.empty() ? nullptr : index_there.data()}; }

 private:
  static std::vector<std::int32_t> scattered(setting const& s) {
    if (!s.gathered) return {};
    std::vector<std::int32_t> places(static_cast<std::size_t>(2 * s.total()));
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), random_bits);
    places.resize(static_cast<std::size_t>(s.total()));
    return places;
  }
};

template <class T> struct weights {
  int64 shift, group_stride, row_stride;
  std::vector<T> values;
  device_values<T> there;

  weights(setting const& s, int64 rows, int64 cols)
      : shift(s.shift),
        group_stride((rows + (s.mapped ? 1 : 0)) * (cols + s.pad) + (s.mapped         ? 0
                                                                     : sizeof(T) == 1 ? 16
                                                                                      : 8)),
        row_stride(cols + s.pad),
        values(static_cast<std::size_t>(shift + s.groups() * group_stride), poison<T>()),
        there(int64{0}) {
    for (int64 g = 0; g < s.groups(); ++g)
      for (int64 r = 0; r < rows; ++r)
        for (int64 c = 0; c < cols; ++c) at(values, shift + g * group_stride + r * row_stride + c) = random_value<T>();
    there = device_values<T>(values);
  }
  T operator()(int64 g, int64 r, int64 c) const { return at(values, shift + g * group_stride + r * row_stride + c); }
  grouped_matrix<T const> here() const { return {values.data() + shift, group_stride, row_stride}; }
  grouped_matrix<T const> view() const { return {there.data() + shift, group_stride, row_stride}; }
};

/// Takes sums [M x rows x n] and counts how often it is given each; all but [M][0 ... total) stays as it was.
template <class S, std::size_t M> struct collect {
  S* sums;
  int* calls;
  int64* groups;
  int64 rows, n;

  template <std::size_t N>
  __device__ void operator()(int64 group, int64 row, int64 col, int count, S const (&from)[M][N]) const {
    for (int c = 0; c < count; ++c) {
      for (int m = 0; m < static_cast<int>(M); ++m) sums[(m * rows + row) * n + col + c] = from[m][c];
      ++calls[row * n + col + c];
      groups[row * n + col + c] = group;
    }
  }
};

/// Runs f(collect) and returns the sums, once every row and column of each group has been handed over once.
template <class S, std::size_t M, class Function> std::vector<S> collected(setting const& s, Function const& f) {
  int64 const rows = s.bound() + 1;  // one more than there can be
  device_values<S> sums(static_cast<int64>(M) * rows * s.n);
  device_values<int> calls(std::vector<int>(static_cast<std::size_t>(rows * s.n), 0));
  device_values<int64> groups(std::vector<int64>(static_cast<std::size_t>(rows * s.n), -1));
  f(collect<S, M>{sums.data(), calls.data(), groups.data(), rows, s.n});
  auto const counts = calls.host();
  auto const owners = groups.host();
  auto const starts = s.starts();
  bool once = true, owned = true;
  for (int64 r = 0; r < rows; ++r)
    for (int64 c = 0; c < s.n; ++c) {
      bool const exists = r < s.total();
      int64 const group = std::upper_bound(starts.begin(), starts.end(), r) - starts.begin() - 1;
      once = once && at(counts, r * s.n + c) == (exists ? 1 : 0);
      owned = owned && at(owners, r * s.n + c) == (exists ? group : -1);
    }
  CHECK(once);
  CHECK(owned);
  return sums.host();
}

/// Sums [M x rows x n] as host code makes them; poison where nothing is.
template <class S, int M, class Function> std::vector<S> expected_sums(setting const& s, Function const& of) {
  int64 const rows = s.bound() + 1;
  std::vector<S> sums(static_cast<std::size_t>(M * rows * s.n), poison<S>());
  auto const starts = s.starts();
  for (int m = 0; m < M; ++m)
    for (int64 g = 0; g < s.groups(); ++g)
      for (int64 r = at(starts, g); r < at(starts, g + 1); ++r)
        for (int64 c = 0; c < s.n; ++c) at(sums, (m * rows + r) * s.n + c) = of(m, g, r, c);
  return sums;
}

/// ||got - expected|| / ||expected|| over what is not poison; infinite where only one of them is.
template <class S> double difference(std::vector<S> const& got, std::vector<double> const& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    bool const missing = std::isnan(expected[i]);
    if (missing != std::isnan(static_cast<double>(got[i]))) return INFINITY;
    if (missing) continue;
    error += (static_cast<double>(got[i]) - expected[i]) * (static_cast<double>(got[i]) - expected[i]);
    norm += expected[i] * expected[i];
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

/// Whether host and device round a chain alike: a host without fma rounds twice, a GPU does not.
#if defined(CUDA_ON_CPU) || MOIETY_HAS_FMA
inline constexpr bool host_rounds_alike = true;
#else
inline constexpr bool host_rounds_alike = false;
#endif

template <class T> double as_it_is(T value) { return static_cast<double>(value); }

/// How far tensor cores are from double: those of e4m3 need not keep all bits of a sum.
#if defined(CUDA_ON_CPU)
template <class T> inline constexpr double of_tensor_cores = 1e-5;
#else
template <class T> inline constexpr double of_tensor_cores = std::same_as<T, mo::e4m3> ? 1e-3 : 1e-5;
#endif

/// Chains are compared bit by bit with the host's; tensor cores with double. Returns what came out.
template <class S, class A, class B, class Case> std::vector<S> compare(Case const& of) {
  auto got = of.run();
  if constexpr (gpu::on_tensor_cores<S, A, B> || std::same_as<A, mo::e4m3> || !host_rounds_alike)
    CHECK(difference(got, of.exact([](auto v) { return as_it_is(v); })) < of_tensor_cores<A>);
  else
    CHECK(same_bits(got, of.on_host()));
  return got;
}

template <class S, class A, class B, std::size_t M> struct nt_case {
  setting s;
  operand<A> a;
  std::vector<weights<B>> w;
  device_offsets offsets;
  static constexpr int matrices = static_cast<int>(M);

  explicit nt_case(setting const& of) : s(of), a(s, s.k), offsets(s) {
    for (std::size_t m = 0; m < M; ++m) w.emplace_back(s, s.n, s.k);
  }
  std::vector<S> run(int64 more_rows = 0) const { return run_on(engine(), more_rows); }
  template <class Engine> std::vector<S> run_on(Engine&& by, int64 more_rows = 0) const {
    std::array<grouped_matrix<B const>, M> views;
    for (std::size_t m = 0; m < M; ++m) views[m] = w[m].view();
    return collected<S, M>(s, [&](auto const& epilogue) {
      grouped_gemm_nt<S>(by, s.groups(), offsets.get(), s.bound() + more_rows, a.view(), views, s.n, s.k, epilogue);
    });
  }
  std::vector<S> on_host() const {
    std::array<grouped_matrix<B const>, M> views;
    for (std::size_t m = 0; m < M; ++m) views[m] = w[m].here();
    auto sums = expected_sums<S, matrices>(s, [](int, int64, int64, int64) { return S{0}; });
    auto const starts = s.starts();
    grouped_gemm_nt<S>(host_engine(), s.groups(), starts.data(), a.here(), views, s.n, s.k,
                       [&](int64, int64 row, int64 col, int64 cols, std::array<S const*, M> const& from) {
                         for (std::size_t m = 0; m < M; ++m)
                           std::copy_n(from[m], cols,
                                       sums.data() + (static_cast<int64>(m) * (s.bound() + 1) + row) * s.n + col);
                       });
    return sums;
  }
  /// Sums in double of what value() makes of the operands.
  template <class Value> std::vector<double> exact(Value const& value) const {
    return expected_sums<double, matrices>(s, [&](int m, int64 g, int64 r, int64 c) {
      double sum = 0;
      for (int64 i = 0; i < s.k; ++i) sum += value(a(r, i)) * value(w[static_cast<std::size_t>(m)](g, c, i));
      return sum;
    });
  }
  void check() const { compare<S, A, B>(*this); }
};

template <class S, class A, class B, std::size_t M> struct nn_case {
  setting s;
  std::vector<operand<A>> a;
  std::vector<weights<B>> w;
  device_offsets offsets;

  explicit nn_case(setting const& of) : s(of), offsets(s) {
    for (std::size_t m = 0; m < M; ++m) a.emplace_back(s, s.k), w.emplace_back(s, s.k, s.n);
  }
  std::vector<S> run(int64 more_rows = 0) const { return run_on(engine(), more_rows); }
  template <class Engine> std::vector<S> run_on(Engine&& by, int64 more_rows = 0) const {
    std::array<rows_of<A>, M> rows;
    std::array<grouped_matrix<B const>, M> views;
    for (std::size_t m = 0; m < M; ++m) rows[m] = a[m].view(), views[m] = w[m].view();
    return collected<S, 1>(s, [&](auto const& epilogue) {
      grouped_gemm_nn<S>(by, s.groups(), offsets.get(), s.bound() + more_rows, rows, views, s.n, s.k, epilogue);
    });
  }
  std::vector<S> on_host() const {
    std::array<rows_of<A>, M> rows;
    std::array<grouped_matrix<B const>, M> views;
    for (std::size_t m = 0; m < M; ++m) rows[m] = a[m].here(), views[m] = w[m].here();
    auto sums = expected_sums<S, 1>(s, [](int, int64, int64, int64) { return S{0}; });
    auto const starts = s.starts();
    grouped_gemm_nn<S>(host_engine(), s.groups(), starts.data(), rows, views, s.n, s.k,
                       [&](int64, int64 row, int64 col, int64 cols, S const* from) {
                         std::copy_n(from, cols, sums.data() + row * s.n + col);
                       });
    return sums;
  }
  template <class Value> std::vector<double> exact(Value const& value) const {
    return expected_sums<double, 1>(s, [&](int, int64 g, int64 r, int64 c) {
      double sum = 0;
      for (std::size_t m = 0; m < M; ++m)
        for (int64 i = 0; i < s.k; ++i) sum += value(a[m](r, i)) * value(w[m](g, i, c));
      return sum;
    });
  }
  void check() const { compare<S, A, B>(*this); }
};

template <class S, class A, class B> struct tn_case {
  setting s;
  operand<A> a;
  operand<B> b;
  device_offsets offsets;
  int64 row_stride, group_stride;
  std::vector<S> before;

  explicit tn_case(setting const& of)
      : s(of),
        a(s, s.n),
        b(s, s.k),
        offsets(s),
        row_stride(s.k + s.pad),
        group_stride(s.n * row_stride + 8),
        before(static_cast<std::size_t>(s.shift + s.groups() * group_stride), poison<S>()) {
    if (s.accumulate) for_outputs([&](int64, int64, int64, int64 place) { at(before, place) = random_value<S>(); });
  }
  template <class Function> void for_outputs(Function const& f) const {
    for (int64 g = 0; g < s.groups(); ++g)
      for (int64 i = 0; i < s.n; ++i)
        for (int64 j = 0; j < s.k; ++j) f(g, i, j, s.shift + g * group_stride + i * row_stride + j);
  }
  std::vector<S> run(int64 more_rows = 0) const { return run_on(engine(), more_rows); }
  template <class Engine> std::vector<S> run_on(Engine&& by, int64 more_rows = 0) const {
    device_values<S> out(before);
    grouped_gemm_tn<S>(by, s.groups(), offsets.get(), s.bound() + more_rows, a.view(), b.view(),
                       grouped_matrix<S>{out.data() + s.shift, group_stride, row_stride}, s.n, s.k, s.accumulate);
    return out.host();
  }
  std::vector<S> on_host() const {
    std::vector<S> out = before;
    auto const starts = s.starts();
    grouped_gemm_tn<S>(host_engine(), s.groups(), starts.data(), a.here(), b.here(),
                       grouped_matrix<S>{out.data() + s.shift, group_stride, row_stride}, s.n, s.k, s.accumulate);
    return out;
  }
  template <class Value> std::vector<double> exact(Value const& value) const {
    std::vector<double> sums(before.size(), poison<double>());
    auto const starts = s.starts();
    for_outputs([&](int64 g, int64 i, int64 j, int64 place) {
      double sum = s.accumulate ? static_cast<double>(at(before, place)) : 0;
      for (int64 r = at(starts, g); r < at(starts, g + 1); ++r) sum += value(a(r, i)) * value(b(r, j));
      at(sums, place) = sum;
    });
    return sums;
  }
  void check() const {
    auto const got = compare<S, A, B>(*this);
    bool kept = true;  // groups without rows
    for_outputs([&](int64 g, int64, int64, int64 place) {
      if (s.rows[static_cast<std::size_t>(g)] == 0)
        kept = kept && at(got, place) == (s.accumulate ? at(before, place) : S{0});
    });
    CHECK(kept);
  }
};

/// Each thread returns the chain of its columns times scale; takes the sums of rows.
template <class S> struct weigh {
  static constexpr bool sums_rows = true;
  S const* scale;
  S* parts;
  int* calls;
  int64 tiles;

  template <std::size_t N> __device__ S operator()(int64, int64, int64 col, int count, S const (&sums)[1][N]) const {
    S sum = 0;
    for (int c = 0; c < count; ++c) sum = mo::fma(sums[0][c], scale[col + c], sum);
    return sum;
  }
  __device__ void row_sum(int64 row, int64 tile, S sum) const {
    parts[row * tiles + tile] = sum;
    ++calls[row * tiles + tile];
  }
};

/// What row_sum is given, from the sums of one row.
template <class S> S folded(std::vector<S> const& sums, std::vector<S> const& scale, int64 row, int64 tile, int64 n) {
  S blocks[16] = {};
  for (int64 c = tile * 128; c < std::min(n, (tile + 1) * 128); ++c)
    blocks[c % 128 / 8] = mo::fma(at(sums, row * n + c), at(scale, c), blocks[c % 128 / 8]);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) blocks[i] = blocks[i] + blocks[i + half];
  return blocks[0];
}

/// Sums of rows of an nn have the bits that its sums, handed over one by one, have when they are added in the one order.
template <class S, class T> void check_row_sums(setting const& s) {
  nn_case<S, T, T, 1> const nn(s);
  nn.check();
  auto const sums = nn.run();
  int64 const tiles = (s.n + cuda_column_tile - 1) / cuda_column_tile;
  std::vector<S> scale(static_cast<std::size_t>(s.n)), expected;
  for (S& value : scale) value = random_value<S>();
  for (int64 r = 0; r < s.total(); ++r)
    for (int64 tile = 0; tile < tiles; ++tile) expected.push_back(folded(sums, scale, r, tile, s.n));
  device_values<S> const scale_there(scale);
  device_values<S> parts(s.total() * tiles);
  device_values<int> calls(std::vector<int>(static_cast<std::size_t>(s.total() * tiles), 0));
  grouped_gemm_nn<S>(engine(), s.groups(), nn.offsets.get(), s.bound(), std::array{nn.a[0].view()},
                     std::array{nn.w[0].view()}, s.n, s.k,
                     weigh<S>{scale_there.data(), parts.data(), calls.data(), tiles});
  CHECK(same_bits(parts.host(), expected));
  CHECK(calls.host() == std::vector<int>(static_cast<std::size_t>(s.total() * tiles), 1));
}

/// Rows of one operand begin at multiples of `bytes`, as does the first; `more` times that lie between.
template <class T> setting aligned(setting s, int64 bytes = 16, int64 more = 0) {
  int64 const elements = bytes / static_cast<int64>(sizeof(T));
  s.pad = (elements - s.k % elements) % elements + more * elements;
  s.shift = more * elements;
  return s;
}

/// Integers of -4 ... 4 in the place of all operands of an nt, whose sums are exact in any order.
template <class Case> void draw_integers(Case& of) {
  auto const draw = [](auto& values) {
    for (auto& value : values)
      if (!std::isnan(static_cast<float>(value)))
        value = std::decay_t<decltype(value)>(static_cast<float>(static_cast<int>(random_bits() % 9) - 4));
  };
  draw(of.a.values), of.a.upload();
  for (auto& w : of.w) draw(w.values), w.there = std::decay_t<decltype(w.there)>(w.values);
}

/// Poisons what rows there are before `first` and from `end` on, and runs each of `runs`: rows between them must have the bits
/// of `before`.
template <class Case, class... Runs>
void check_rows_alone(Case& nt, int64 first, int64 end, std::vector<float> const& before, Runs const&... runs) {
  setting const& s = nt.s;
  using T = std::decay_t<decltype(nt.a(0, 0))>;
  for (int64 r = 0; r < s.total(); ++r)
    for (int64 c = 0; c < s.k && (r < first || r >= end); ++c) nt.a(r, c) = poison<T>();
  nt.a.upload();
  auto const check = [&](std::vector<float> const& beside) {
    bool same = true;
    for (int64 m = 0; m < Case::matrices; ++m)
      for (int64 r = first; r < end; ++r)
        for (int64 c = 0; c < s.n; ++c) {
          int64 const place = (m * (s.bound() + 1) + r) * s.n + c;
          same = same && at(beside, place) == at(before, place);
        }
    CHECK(same);
  };
  (check(runs()), ...);
}

/// Integers with powers of two as scales of blocks of 128 k, and of 128 columns of matrices: sums are exact in any order.
template <class T, std::size_t M> void check_block_scales(setting const& s) {
  nt_case<float, T, T, M> of(s);
  draw_integers(of);
  int64 const across = (s.k + 127) / 128, down = (s.n + 127) / 128;
  auto const powers = [](int64 count) {
    std::vector<float> all(static_cast<std::size_t>(count));
    for (float& v : all) v = std::ldexp(1.0f, static_cast<int>(random_bits() % 7) - 3);
    return all;
  };
  auto const rows = powers(s.total() * across);
  std::vector<std::vector<float>> blocks;
  device_values<float> const d_rows(rows);
  std::vector<device_values<float>> d_blocks;
  gpu::block_scales<static_cast<int>(M)> scales{d_rows.data(), {}, across, down};
  std::array<grouped_matrix<T const>, M> views;
  for (std::size_t m = 0; m < M; ++m) {
    blocks.push_back(powers(s.groups() * down * across));
    d_blocks.emplace_back(blocks[m]);
    scales.by_block[m] = d_blocks[m].data(), views[m] = of.w[m].view();
  }
  auto const got = collected<float, M>(s, [&](auto const& epilogue) {
    grouped_gemm_nt<float>(engine(), s.groups(), of.offsets.get(), s.bound(), of.a.view(), views, scales, s.n, s.k,
                           epilogue);
  });
  auto const wanted = expected_sums<double, static_cast<int>(M)>(s, [&](int m, int64 g, int64 r, int64 c) {
    double sum = 0;
    for (int64 i = 0; i < s.k; ++i)
      sum += as_it_is(of.a(r, i)) * as_it_is(of.w[static_cast<std::size_t>(m)](g, c, i)) *
             static_cast<double>(at(rows, r * across + i / 128)) *
             static_cast<double>(at(blocks[static_cast<std::size_t>(m)], (g * down + c / 128) * across + i / 128));
    return sum;
  });
  CHECK(difference(got, wanted) == 0);
}

/// 2^16 from the first 128 k of e4m3, and from the next four times 2^-9, each of which would be lost beside it.
template <class T> void check_steps_apart() {
  nt_case<float, T, T, 1> nt({.rows = {1}, .n = 1, .k = 256, .mapped = true});
  for (int64 c = 0; c < nt.s.k; ++c) nt.a(0, c) = at(nt.w[0].values, c) = T(0.0f);
  nt.a(0, 0) = at(nt.w[0].values, 0) = T(256.0f);
  for (int64 c = 130; c < nt.s.k; c += 32) nt.a(0, c) = T(0x1p-9f), at(nt.w[0].values, c) = T(1.0f);
  nt.a.upload();
  nt.w[0].there = device_values<T>(nt.w[0].values);
  CHECK(at(nt.run(), 0) == 0x1p16f + 0x1p-7f);
}

template <class S, class A, class B = A> void check_nt(setting const& s) {
  nt_case<S, A, B, 1>(s).check();
  nt_case<S, A, B, 2>(s).check();
}
template <class S, class A, class B = A> void check_nn(setting const& s) {
  nn_case<S, A, B, 1>(s).check();
  nn_case<S, A, B, 2>(s).check();
}
template <class S, class A, class B = A> void check_tn(setting s) {
  for (bool const accumulate : {false, true}) {
    s.accumulate = accumulate;
    tn_case<S, A, B>(s).check();
  }
}
template <class S, class A, class B = A> void check_all(setting const& s) {
  check_nt<S, A, B>(s);
  check_nn<S, A, B>(s);
  check_tn<S, A, B>(s);
}

}  // namespace gemm_cases
