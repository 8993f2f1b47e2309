// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/grouped_gemm.hpp>

#include <moiety/backend/host.hpp>
#include <moiety/core/math.hpp>

#include <doctest/doctest.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <type_traits>
#include <vector>

namespace mo = moiety;
using namespace moiety::kernels;
using int64 = std::int64_t;

namespace {

template <class T> T& at(std::vector<T>& values, int64 i) { return values[static_cast<std::size_t>(i)]; }
template <class T> T const& at(std::vector<T> const& values, int64 i) { return values[static_cast<std::size_t>(i)]; }

template <class T> std::vector<T> random_values(int64 count, unsigned seed) {
  std::mt19937 bits(seed);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(std::ldexp(static_cast<float>(bits() >> 8) + 0.5f, -23) - 1.0f);
  return values;
}

/// Values that end where memory does that nobody may read.
template <class T> class before_a_wall {
 public:
  explicit before_a_wall(int64 count) {
    auto const page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)),
               bytes = static_cast<std::size_t>(count) * sizeof(T);
    size_ = (bytes + page - 1) / page * page + page;
    memory_ =
        static_cast<std::byte*>(::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(::mprotect(memory_ + size_ - page, page, PROT_NONE) == 0);
    values = reinterpret_cast<T*>(memory_ + size_ - page - bytes);
    auto const random = random_values<T>(count, 77);
    std::copy(random.begin(), random.end(), values);
  }
  before_a_wall(before_a_wall const&) = delete;
  before_a_wall& operator=(before_a_wall const&) = delete;
  ~before_a_wall() { ::munmap(memory_, size_); }

  T* values;

 private:
  std::byte* memory_;
  std::size_t size_;
};

template <class S> S poison() { return std::numeric_limits<S>::quiet_NaN(); }

/// Bitwise equality: NaN equals itself, the zeros differ.
template <class S> bool same(std::vector<S> const& a, std::vector<S> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0);
}

/// Rows per group, and everything that varies around a product.
struct setting {
  std::vector<int64> rows;
  int64 n = 0, k = 0;
  bool gathered = false;
  int64 pad = 0;  // columns between strides, poisoned in outputs
  int threads = 1;

  int64 groups() const { return static_cast<int64>(rows.size()); }
  int64 total() const { return std::accumulate(rows.begin(), rows.end(), int64{0}); }
  std::vector<int64> offsets() const {
    std::vector<int64> all{0};
    for (int64 const count : rows) all.push_back(all.back() + count);
    return all;
  }
};

/// Operand rows, gathered out of twice as many in a scattered order if the setting says so.
template <class T> struct operand {
  std::vector<T> values;
  std::vector<std::int32_t> index;
  int64 stride;

  operand(setting const& s, int64 cols, unsigned seed)
      : values(random_values<T>(2 * (s.total() + 1) * (cols + s.pad), seed)), stride(cols + s.pad) {
    if (s.gathered)
      for (int64 r = 0; r < s.total(); ++r) index.push_back(static_cast<std::int32_t>(r * 7919 % (2 * s.total() + 1)));
  }
  rows_of<T> view() const { return {values.data(), stride, index.empty() ? nullptr : index.data()}; }
};

template <class T> struct weights {
  std::vector<T> values;
  int64 group_stride, row_stride;

  weights(setting const& s, int64 rows, int64 cols, unsigned seed)
      : values(random_values<T>(s.groups() * (rows * (cols + s.pad) + 5), seed)),
        group_stride(rows * (cols + s.pad) + 5),
        row_stride(cols + s.pad) {}
  grouped_matrix<T const> view() const { return {values.data(), group_stride, row_stride}; }
};

/// The transposes of matrices [rows x cols], in memory of their own.
template <class T, std::size_t M> struct turned {
  std::vector<weights<T>> memory;
  std::array<transposed_matrix<T const>, M> matrices;

  turned(setting const& s, std::array<grouped_matrix<T const>, M> const& from, int64 rows, int64 cols) {
    for (std::size_t m = 0; m < M; ++m) memory.emplace_back(s, cols, rows, 99);
    for (std::size_t m = 0; m < M; ++m) {
      auto& to = memory[m];
      for (int64 g = 0; g < s.groups(); ++g)
        for (int64 r = 0; r < rows; ++r)
          for (int64 c = 0; c < cols; ++c)
            at(to.values, g * to.group_stride + c * to.row_stride + r) = from[m].group(g)[r * from[m].row_stride + c];
      matrices[m] = {to.values.data(), to.group_stride, to.row_stride};
    }
  }
};

/// Collects what an epilogue is given, and counts the calls.
template <class S, std::size_t M> struct collector {
  int64 n, blocks;
  std::array<std::vector<S>, M> sums;
  std::vector<std::atomic<int>> calls;
  std::atomic<int> misplaced{0};

  collector(int64 rows, int64 columns)
      : n(columns),
        blocks((columns + column_block<S> - 1) / column_block<S>),
        calls(static_cast<std::size_t>(rows * blocks)) {
    for (auto& values : sums) values.assign(static_cast<std::size_t>(rows * n), poison<S>());
  }

  void take(setting const& s, int64 group, int64 row, int64 col, int64 cols, std::array<S const*, M> const& from) {
    auto const offsets = s.offsets();
    bool const placed = group >= 0 && group < s.groups() && row >= at(offsets, group) && row < at(offsets, group + 1) &&
                        col % column_block<S> == 0 && cols == std::min(column_block<S>, n - col);
    if (!placed) {
      ++misplaced;
      return;
    }
    ++calls[static_cast<std::size_t>(row * blocks + col / column_block<S>)];
    for (std::size_t m = 0; m < M; ++m) std::copy_n(from[m], cols, sums[m].data() + row * n + col);
  }
  bool once() const {
    return misplaced == 0 && std::all_of(calls.begin(), calls.end(), [](auto const& c) { return c == 1; });
  }
};

mo::host_engine& engine(int threads) {
  static mo::host_engine one(mo::host{.threads = 1}), two(mo::host{.threads = 2}), four(mo::host{.threads = 4});
  return threads == 1 ? one : threads == 2 ? two : four;
}

/// The i-th term of a chain of `count`: in sums of two bf16 operands, the second of each pair comes first.
template <class S, class A, class B> int64 term(int64 i, int64 count) {
  bool const pairs = std::is_same_v<S, float> && std::is_same_v<A, mo::bf16> && std::is_same_v<B, mo::bf16>;
  return pairs && (i ^ 1) < count ? i ^ 1 : i;
}

/// Packed copies of M matrices, in memory that was poisoned.
template <class T, std::size_t M> struct packed {
  struct alignas(64) line {
    std::byte bytes[64];
  };
  std::array<std::vector<line>, M> memory;
  std::array<packed_matrix<T>, M> matrices;

  template <class Matrix, class Pack> packed(setting const& s, std::array<Matrix, M> const& from, Pack const& pack) {
    int64 const bytes = packed_bytes<T>(s.n, s.k);
    for (std::size_t m = 0; m < M; ++m) {
      memory[m].resize(static_cast<std::size_t>(s.groups() * bytes / 64 + 1));
      auto* const to = reinterpret_cast<std::byte*>(memory[m].data());
      std::memset(to, 0xff, memory[m].size() * 64);
      pack(engine(s.threads), from[m], to);
      matrices[m] = {to, bytes};
    }
  }
};

template <class S, class A, class B> S step(A a, B b, S sum) {
  return mo::fma(static_cast<S>(a), static_cast<S>(b), sum);
}

template <class S, class A, class B, std::size_t M = 1> void check_nt(setting const& s) {
  operand<A> const a(s, s.k, 1);
  std::vector<weights<B>> w;
  std::array<grouped_matrix<B const>, M> views;
  for (std::size_t m = 0; m < M; ++m) w.emplace_back(s, s.n, s.k, 2 + static_cast<unsigned>(m));
  for (std::size_t m = 0; m < M; ++m) views[m] = w[m].view();
  auto const offsets = s.offsets();
  auto const run = [&](auto const& matrices) {
    collector<S, M> got(s.total(), s.n);
    grouped_gemm_nt<S>(engine(s.threads), s.groups(), offsets.data(), a.view(), matrices, s.n, s.k,
                       [&](int64 g, int64 row, int64 col, int64 cols, std::array<S const*, M> const& sums) {
                         got.take(s, g, row, col, cols, sums);
                       });
    CHECK(got.once());
    return got.sums;
  };
  auto const got = run(views);
  for (std::size_t m = 0; m < M; ++m) {
    std::vector<S> expected;
    for (int64 g = 0; g < s.groups(); ++g)
      for (int64 r = at(offsets, g); r < at(offsets, g + 1); ++r)
        for (int64 c = 0; c < s.n; ++c) {
          S sum = 0;
          for (int64 i = 0; i < s.k; ++i) {
            int64 const k = term<S, A, B>(i, s.k);
            sum = step(a.view().row(r)[k], views[m].group(g)[c * views[m].row_stride + k], sum);
          }
          expected.push_back(sum);
        }
    CHECK(same(got[m], expected));
  }
  turned<B, M> const other(s, views, s.n, s.k);
  auto const of_transposes = run(other.matrices);
  for (std::size_t m = 0; m < M; ++m) CHECK(same(of_transposes[m], got[m]));
  if constexpr (std::is_same_v<A, B> && std::is_same_v<S, mo::sum_t<B>>) {
    auto const pack = [&](auto& on, auto const& matrix, std::byte* to) {
      pack_nt(on, s.groups(), matrix, s.n, s.k, to);
    };
    packed<B, M> const kept(s, views, pack), kept_transposes(s, other.matrices, pack);
    auto const again = run(kept.matrices), of_copies = run(kept_transposes.matrices);
    for (std::size_t m = 0; m < M; ++m) CHECK((same(again[m], got[m]) && same(of_copies[m], got[m])));
  }
}

template <class S, class A, class B, std::size_t M = 1> void check_nn(setting const& s) {
  std::vector<operand<A>> a;
  std::vector<weights<B>> w;
  std::array<rows_of<A>, M> rows;
  std::array<grouped_matrix<B const>, M> views;
  for (std::size_t m = 0; m < M; ++m) a.emplace_back(s, s.k, 10 + static_cast<unsigned>(m));
  for (std::size_t m = 0; m < M; ++m) w.emplace_back(s, s.k, s.n, 20 + static_cast<unsigned>(m));
  for (std::size_t m = 0; m < M; ++m) rows[m] = a[m].view(), views[m] = w[m].view();
  auto const offsets = s.offsets();
  auto const run = [&](auto const& matrices) {
    collector<S, 1> got(s.total(), s.n);
    grouped_gemm_nn<S>(
        engine(s.threads), s.groups(), offsets.data(), rows, matrices, s.n, s.k,
        [&](int64 g, int64 row, int64 col, int64 cols, S const* sums) { got.take(s, g, row, col, cols, {sums}); });
    CHECK(got.once());
    return got.sums[0];
  };
  auto const got = run(views);
  std::vector<S> expected(static_cast<std::size_t>(s.total() * s.n), S{0});
  for (int64 g = 0; g < s.groups(); ++g)
    for (int64 r = at(offsets, g); r < at(offsets, g + 1); ++r)
      for (std::size_t m = 0; m < M; ++m)
        for (int64 i = 0; i < s.k; ++i)
          for (int64 c = 0; c < s.n; ++c) {
            int64 const k = term<S, A, B>(i, s.k);
            S& sum = at(expected, r * s.n + c);
            sum = step(rows[m].row(r)[k], views[m].group(g)[k * views[m].row_stride + c], sum);
          }
  CHECK(same(got, expected));
  turned<B, M> const other(s, views, s.k, s.n);
  CHECK(same(run(other.matrices), got));
  if constexpr (std::is_same_v<A, B> && std::is_same_v<S, mo::sum_t<B>>) {
    auto const pack = [&](auto& on, auto const& matrix, std::byte* to) {
      pack_nn(on, s.groups(), matrix, s.n, s.k, to);
    };
    packed<B, M> const kept(s, views, pack), kept_transposes(s, other.matrices, pack);
    CHECK(same(run(kept.matrices), got));
    CHECK(same(run(kept_transposes.matrices), got));
  }
}

template <class S, class A, class B> void check_tn(setting const& s, bool accumulate) {
  operand<A> const a(s, s.n, 30);
  operand<B> const b(s, s.k, 31);
  int64 const row_stride = s.k + s.pad, group_stride = s.n * row_stride + 3;
  std::vector<S> out(static_cast<std::size_t>(s.groups() * group_stride) + 64 / sizeof(S), poison<S>());
  // The first group lies on a line, so that it is written past the caches where its rows do too.
  auto const place = static_cast<int64>((64 - reinterpret_cast<std::uintptr_t>(out.data()) % 64) % 64 / sizeof(S));
  auto const before = random_values<S>(s.groups() * group_stride, 32);
  auto const offsets = s.offsets();
  if (accumulate)
    for (int64 g = 0; g < s.groups(); ++g)
      for (int64 i = 0; i < s.n; ++i)
        std::copy_n(before.data() + g * group_stride + i * row_stride, s.k,
                    out.data() + place + g * group_stride + i * row_stride);
  auto expected = out;
  for (int64 g = 0; g < s.groups(); ++g)
    for (int64 i = 0; i < s.n; ++i) {
      S* const row = expected.data() + place + g * group_stride + i * row_stride;
      if (!accumulate) std::fill_n(row, s.k, S{0});
      int64 const first = at(offsets, g), rows = at(offsets, g + 1) - first;
      for (int64 t = 0; t < rows; ++t)
        for (int64 j = 0, r = first + term<S, A, B>(t, rows); j < s.k; ++j)
          row[j] = step(a.view().row(r)[i], b.view().row(r)[j], row[j]);
    }
  grouped_gemm_tn<S>(engine(s.threads), s.groups(), offsets.data(), a.view(), b.view(),
                     grouped_matrix<S>{out.data() + place, group_stride, row_stride}, s.n, s.k, accumulate);
  CHECK(same(out, expected));
}

template <class S, class A, class B> void check_all(setting const& s) {
  CAPTURE(s.rows);
  CAPTURE(s.n);
  CAPTURE(s.k);
  CAPTURE(s.gathered);
  CAPTURE(s.threads);
  check_nt<S, A, B>(s);
  check_nn<S, A, B>(s);
  check_tn<S, A, B>(s, false);
  check_tn<S, A, B>(s, true);
}

}  // namespace

TEST_CASE_TEMPLATE("each direction is the chain of fma, for every shape", S, float, double) {
  constexpr std::array<int64, 9> rows{0, 1, 2, 3, 13, 14, 15, 37, 256};
  constexpr std::array<int64, 10> sizes{1, 3, 7, 16, 31, 33, 255, 256, 257, 512};
  std::mt19937 pick(5);
  for (int64 const groups : {1, 3, 8})
    for (int trial = 0; trial < 30; ++trial) {
      setting s;
      for (int64 g = 0; g < groups; ++g) s.rows.push_back(rows[pick() % (groups == 1 ? 9 : 8)]);
      s.n = sizes[pick() % sizes.size()], s.k = sizes[pick() % (groups == 1 ? 10 : 6)];
      if (pick() % 2 != 0) std::swap(s.n, s.k);
      s.gathered = pick() % 2 != 0, s.pad = pick() % 2 != 0 ? 5 : 0, s.threads = 1 << (pick() % 3);
      check_all<S, S, S>(s);
    }
}

TEST_CASE_TEMPLATE("sums longer than one block of k are not split", S, float, double) {
  check_all<S, S, S>({.rows = {37}, .n = 33, .k = 700, .threads = 2});
  check_all<S, S, S>({.rows = {5}, .n = 700, .k = 513, .gathered = true, .threads = 4});
  check_tn<S, S, S>({.rows = {3, 700}, .n = 31, .k = 65, .threads = 2}, true);
}

TEST_CASE("one group may own all rows, and others none") {
  check_all<float, float, float>({.rows = {0, 300, 0}, .n = 257, .k = 31, .gathered = true, .pad = 3, .threads = 2});
  check_all<float, float, float>({.rows = {0, 0, 0}, .n = 17, .k = 16});
  check_all<float, float, float>({.rows = {}, .n = 17, .k = 16});
}

TEST_CASE("matrices without columns, and sums of nothing") {
  for (int64 const rows : {0, 1, 20}) {
    check_all<float, float, float>({.rows = {rows, 2}, .n = 0, .k = 3});
    check_all<double, double, double>({.rows = {rows, 2}, .n = 20, .k = 0});
  }
}

TEST_CASE("products of bf16 are summed in pairs, the second first, for every shape") {
  constexpr std::array<int64, 11> rows{0, 1, 2, 3, 5, 8, 9, 15, 16, 37, 256};
  constexpr std::array<int64, 10> sizes{1, 2, 7, 16, 31, 33, 64, 255, 257, 600};
  std::mt19937 pick(6);
  for (int trial = 0; trial < 60; ++trial) {
    setting s;
    for (int g = 0; g < 3; ++g) s.rows.push_back(rows[pick() % (g == 0 ? 11 : 9)]);
    s.n = sizes[pick() % sizes.size()], s.k = sizes[pick() % sizes.size()];
    s.gathered = pick() % 2 != 0, s.pad = pick() % 2 != 0 ? 5 : 0, s.threads = 1 << (pick() % 3);
    check_all<float, mo::bf16, mo::bf16>(s);
  }
  check_nt<float, mo::bf16, mo::bf16, 2>({.rows = {37, 3}, .n = 259, .k = 1101, .threads = 2});
  check_nn<float, mo::bf16, mo::bf16, 2>({.rows = {37, 3}, .n = 259, .k = 1101, .gathered = true, .threads = 2});
  check_tn<float, mo::bf16, mo::bf16>({.rows = {1101, 3}, .n = 37, .k = 259}, false);
  check_tn<float, mo::bf16, mo::bf16>({.rows = {1101, 3}, .n = 37, .k = 259}, true);
  check_tn<float, float, float>({.rows = {1101, 3}, .n = 37, .k = 259}, false);
  check_tn<float, float, float>({.rows = {1101, 3}, .n = 37, .k = 259}, true);
}

TEST_CASE("tiles of few rows are as wide as thousands of columns") {
  for (int64 const rows : {1, 3, 8})
    for (int const threads : {1, 2}) {
      check_all<float, float, float>({.rows = {rows, 1}, .n = 2500, .k = 70, .threads = threads});
      check_all<float, mo::bf16, mo::bf16>(
          {.rows = {rows, 1}, .n = 2500, .k = 70, .gathered = true, .threads = threads});
    }
}

TEST_CASE("few rows of another type than the sums may be longer than what is copied at once") {
  check_nt<float, mo::bf16, float>({.rows = {2}, .n = 3, .k = 40000});
}

TEST_CASE("matrices side by side may have any number of columns") {
  for (int64 const n : {1, 9, 255, 257, 511, 513, 530}) {
    check_nt<float, float, float, 2>({.rows = {20, 9}, .n = n, .k = 1100});
    check_nt<double, double, double, 2>({.rows = {20, 9}, .n = n, .k = 600});
    check_nt<float, mo::bf16, mo::bf16>({.rows = {20, 9}, .n = n, .k = 1100, .threads = 2});
  }
}

TEST_CASE("tiles of long sums are low and broad, and their sums go on from block to block") {
  check_nt<float, float, float>({.rows = {300, 20}, .n = 1100, .k = 300});
  check_nt<float, float, float>({.rows = {140, 9}, .n = 40, .k = 2100, .gathered = true});
  check_nt<float, mo::bf16, mo::bf16, 2>({.rows = {150}, .n = 530, .k = 1100, .threads = 2});
  check_nt<float, mo::bf16, mo::bf16>({.rows = {20, 9}, .n = 70, .k = 4201});
  check_nt<double, double, double>({.rows = {130}, .n = 19, .k = 1030});
}

TEST_CASE_TEMPLATE("what lies between rows is not read", T, float, mo::bf16) {
  // Odd sums of bf16 end in half a pair; NaN in the other half would show.
  for (int64 const rows : {1, 3, 8, 40})
    for (int64 const k : {1, 15, 1037}) {
      int64 const n = 19, stride = k + 1, wide = n + 1;
      auto const spoil = [](std::vector<T>& values, int64 every) {
        for (int64 i = every - 1; i < static_cast<int64>(values.size()); i += every)
          at(values, i) = static_cast<T>(poison<float>());
      };
      auto a = random_values<T>(rows * stride, 1), w = random_values<T>(n * stride, 2),
           v = random_values<T>(k * wide, 3);
      spoil(a, stride), spoil(w, stride), spoil(v, wide);
      std::array<int64, 2> const offsets{0, rows};
      int finite = 0;
      grouped_gemm_nt<float>(engine(1), 1, offsets.data(), rows_of<T>{a.data(), stride},
                             std::array{grouped_matrix<T const>{w.data(), 0, stride}}, n, k,
                             [&](int64, int64, int64, int64 cols, std::array<float const*, 1> const& sums) {
                               for (int64 c = 0; c < cols; ++c) finite += std::isfinite(sums[0][c]);
                             });
      grouped_gemm_nn<float>(engine(1), 1, offsets.data(), std::array{rows_of<T>{a.data(), stride}},
                             std::array{grouped_matrix<T const>{v.data(), 0, wide}}, n, k,
                             [&](int64, int64, int64, int64 cols, float const* sums) {
                               for (int64 c = 0; c < cols; ++c) finite += std::isfinite(sums[c]);
                             });
      CHECK(finite == 2 * rows * n);
    }
}

TEST_CASE_TEMPLATE("nothing behind an operand is read", T, float, double, mo::bf16) {
  for (int64 const rows : {1, 7, 20, 100})
    for (int64 const n : {1, 33, 300})
      for (int64 const k : {1, 7, 31, 257}) {
        std::array<int64, 2> const offsets{0, rows};
        std::vector<mo::sum_t<T>> out(static_cast<std::size_t>(n * k));
        before_a_wall<T> const a(rows * k), wide_a(rows * n), w(n * k);
        auto const ignore = [](int64, int64, int64, int64, auto const&) {};
        std::array<grouped_matrix<T const>, 1> const nt{{{w.values, n * k, k}}}, nn{{{w.values, n * k, n}}};
        std::array<transposed_matrix<T const>, 1> const turned_nt{{{w.values, n * k, n}}},
            turned_nn{{{w.values, n * k, k}}};
        rows_of<T> const narrow{a.values, k}, broad{wide_a.values, n};
        using S = mo::sum_t<T>;
        grouped_gemm_nt<S>(engine(1), 1, offsets.data(), narrow, nt, n, k, ignore);
        grouped_gemm_nt<S>(engine(1), 1, offsets.data(), narrow, turned_nt, n, k, ignore);
        grouped_gemm_nn<S>(engine(1), 1, offsets.data(), std::array{narrow}, nn, n, k, ignore);
        grouped_gemm_nn<S>(engine(1), 1, offsets.data(), std::array{narrow}, turned_nn, n, k, ignore);
        grouped_gemm_tn<S>(engine(1), 1, offsets.data(), broad, narrow, grouped_matrix<S>{out.data(), n * k, k}, n, k,
                           false);
      }
}

TEST_CASE("16-bit operands widen exactly") {
  check_all<float, mo::bf16, float>({.rows = {37, 1, 0, 15}, .n = 33, .k = 257, .gathered = true, .threads = 2});
  check_all<float, mo::bf16, mo::bf16>({.rows = {3, 14}, .n = 257, .k = 31, .pad = 7});
  check_all<float, float, mo::fp16>({.rows = {13, 2}, .n = 31, .k = 40, .threads = 2});
}

TEST_CASE("float operands may be summed in double") {
  check_all<double, float, float>({.rows = {13, 40}, .n = 33, .k = 131, .threads = 2});
}

TEST_CASE("two matrices side by side, and two products in one sum") {
  for (int const threads : {1, 2, 4}) {
    setting const s{.rows = {37, 0, 2, 70}, .n = 259, .k = 300, .gathered = true, .pad = 1, .threads = threads};
    check_nt<float, float, float, 2>(s);
    check_nn<float, float, float, 2>(s);
    check_nt<double, double, double, 2>(s);
  }
  check_nn<float, float, float, 2>({.rows = {3}, .n = 5, .k = 0});
}

TEST_CASE("rows may start anywhere in the row space") {
  auto const a = random_values<float>(10 * 4, 1), w = random_values<float>(3 * 4, 2);
  std::array<int64, 2> const offsets{6, 9};
  int calls = 0;
  grouped_gemm_nt<float>(engine(1), 1, offsets.data(), rows_of<float>{a.data(), 4},
                         std::array{grouped_matrix<float const>{w.data(), 12, 4}}, 3, 4,
                         [&](int64, int64 row, int64, int64 cols, std::array<float const*, 1> const& sums) {
                           ++calls;
                           for (int64 c = 0; c < cols; ++c) {
                             float sum = 0;
                             for (int64 k = 0; k < 4; ++k) sum = mo::fma(at(a, row * 4 + k), at(w, c * 4 + k), sum);
                             CHECK(sums[0][c] == sum);
                           }
                         });
  CHECK(calls == 3);
}

TEST_CASE("a sum of zeros is +0, and a NaN stays in its row and column") {
  int64 const rows = 20, n = 20, k = 40;
  std::vector<float> a(static_cast<std::size_t>(rows * k), -0.0f), w(static_cast<std::size_t>(n * k), 1.0f);
  at(a, 7 * k + 3) = poison<float>();
  at(w, 5 * k + 39) = std::numeric_limits<float>::infinity();
  std::array<int64, 2> const offsets{0, rows};
  grouped_gemm_nt<float>(engine(1), 1, offsets.data(), rows_of<float>{a.data(), k},
                         std::array{grouped_matrix<float const>{w.data(), n * k, k}}, n, k,
                         [&](int64, int64 row, int64 col, int64 cols, std::array<float const*, 1> const& sums) {
                           for (int64 c = 0; c < cols; ++c) {
                             bool const bad = row == 7 || col + c == 5;  // -0 times infinity is a NaN too
                             CHECK(std::isnan(sums[0][c]) == bad);
                             if (!bad) CHECK((sums[0][c] == 0.0f && !std::signbit(sums[0][c])));
                           }
                         });
}

TEST_CASE("what an epilogue throws reaches the caller") {
  setting const s{.rows = {100}, .n = 300, .k = 3, .threads = 2};
  operand<float> const a(s, s.k, 1);
  weights<float> const w(s, s.n, s.k, 2);
  auto const call = [&] {
    grouped_gemm_nt<float>(engine(2), 1, s.offsets().data(), a.view(), std::array{w.view()}, s.n, s.k,
                           [](int64, int64 row, int64, int64, auto const&) {
                             if (row == 50) throw std::runtime_error("row 50");
                           });
  };
  CHECK_THROWS_WITH_AS(call(), "row 50", std::runtime_error);
}
