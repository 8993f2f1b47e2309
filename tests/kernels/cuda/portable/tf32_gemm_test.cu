// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/tf32_gemm.cuh>

#include <kernels/cuda/portable/gemm_cases.hpp>

using namespace gemm_cases;

namespace {

tf32_engine by_tf32() { return {engine()}; }

double rounded(float value) {
  auto const bits = mo::detail::bit_cast<std::uint32_t>(value);
  return static_cast<double>(mo::detail::bit_cast<float>((bits + 0x1000u) & ~0x1fffu));
}

template <std::size_t M> using nt_of = nt_case<float, float, float, M>;
template <std::size_t M> using nn_of = nn_case<float, float, float, M>;
using tn_of = tn_case<float, float, float>;

template <std::size_t M> std::vector<float> run(nt_of<M> const& c, int64 more_rows = 0) {
  std::array<grouped_matrix<float const>, M> views;
  for (std::size_t m = 0; m < M; ++m) views[m] = c.w[m].view();
  return collected<float, M>(c.s, [&](auto const& epilogue) {
    grouped_gemm_nt<float>(by_tf32(), c.s.groups(), c.offsets.get(), c.s.bound() + more_rows, c.a.view(), views, c.s.n,
                           c.s.k, epilogue);
  });
}
template <std::size_t M> std::vector<float> run(nn_of<M> const& c, int64 more_rows = 0) {
  std::array<rows_of<float>, M> rows;
  std::array<grouped_matrix<float const>, M> views;
  for (std::size_t m = 0; m < M; ++m) rows[m] = c.a[m].view(), views[m] = c.w[m].view();
  return collected<float, 1>(c.s, [&](auto const& epilogue) {
    grouped_gemm_nn<float>(by_tf32(), c.s.groups(), c.offsets.get(), c.s.bound() + more_rows, rows, views, c.s.n, c.s.k,
                           epilogue);
  });
}
std::vector<float> run(tn_of const& c, int64 more_rows = 0) {
  device_values<float> out(c.before);
  grouped_gemm_tn<float>(by_tf32(), c.s.groups(), c.offsets.get(), c.s.bound() + more_rows, c.a.view(), c.b.view(),
                         grouped_matrix<float>{out.data() + c.s.shift, c.group_stride, c.row_stride}, c.s.n, c.s.k,
                         c.s.accumulate);
  return out.host();
}

/// Against sums in double of what the operands are after rounding, and of what they were.
void expect_sums(std::vector<float> const& got, std::vector<double> const& exact,
                 std::vector<double> const& unrounded) {
  CHECK(difference(got, exact) < 1e-5);
  CHECK(difference(got, unrounded) < 2e-3);
}

template <std::size_t M> void check_nt(setting const& s) {
  nt_of<M> const c(s);
  auto const sums = [&](auto const& value) {
    return expected_sums<double, static_cast<int>(M)>(s, [&](int m, int64 g, int64 r, int64 col) {
      double sum = 0;
      for (int64 i = 0; i < s.k; ++i) sum += value(c.a(r, i)) * value(c.w[static_cast<std::size_t>(m)](g, col, i));
      return sum;
    });
  };
  expect_sums(run(c), sums(rounded), sums([](float v) { return static_cast<double>(v); }));
}
template <std::size_t M> void check_nn(setting const& s) {
  nn_of<M> const c(s);
  auto const sums = [&](auto const& value) {
    return expected_sums<double, 1>(s, [&](int, int64 g, int64 r, int64 col) {
      double sum = 0;
      for (std::size_t m = 0; m < M; ++m)
        for (int64 i = 0; i < s.k; ++i) sum += value(c.a[m](r, i)) * value(c.w[m](g, i, col));
      return sum;
    });
  };
  expect_sums(run(c), sums(rounded), sums([](float v) { return static_cast<double>(v); }));
}
void check_tn(setting s) {
  for (bool const accumulate : {false, true}) {
    s.accumulate = accumulate;
    tn_of const c(s);
    auto const starts = s.starts();
    auto const sums = [&](auto const& value) {
      std::vector<double> all(c.before.size(), poison<double>());
      c.for_outputs([&](int64 g, int64 i, int64 j, int64 place) {
        double sum = accumulate ? static_cast<double>(at(c.before, place)) : 0;
        for (int64 r = at(starts, g); r < at(starts, g + 1); ++r) sum += value(c.a(r, i)) * value(c.b(r, j));
        at(all, place) = sum;
      });
      return all;
    };
    expect_sums(run(c), sums(rounded), sums([](float v) { return static_cast<double>(v); }));
  }
}
void check_all_of(setting const& s) { check_nt<1>(s), check_nt<2>(s), check_nn<1>(s), check_nn<2>(s), check_tn(s); }

}  // namespace

TEST_CASE("heights and widths at the edges of tiles, tall and low, many steps") {
  INFO("seed ", seed);
  for (int64 const rows : {31, 32, 33, 128, 129}) {
    check_nt<2>({.rows = {rows}, .n = 24, .k = 40, .slack = 200});
    check_nn<1>({.rows = {0, rows, 0, 0, 0}, .n = 24, .k = 40});
  }
  check_all_of({.rows = {3, 70}, .n = 128, .k = 196});
  check_all_of({.rows = {40}, .n = 132, .k = 32});
  check_tn({.rows = {33, 0, 32, 95}, .n = 130, .k = 129, .pad = 7});
}

TEST_CASE("empty groups, one group with all, no rows, no k") {
  INFO("seed ", seed);
  check_all_of({.rows = {0, 33, 0, 128, 1, 0}, .n = 40, .k = 36});
  check_all_of({.rows = {0, 0, 0}, .n = 16, .k = 16});
  check_all_of({.rows = {9, 2}, .n = 16, .k = 0});
  check_all_of({.rows = {9, 2}, .n = 0, .k = 16});
  check_all_of({.rows = {}, .n = 16, .k = 16});
}

TEST_CASE("gathered rows, strides, partial chunks of wide rows, rows that begin anywhere") {
  INFO("seed ", seed);
  check_all_of({.rows = {70, 0, 65}, .n = 48, .k = 68, .gathered = true});
  check_all_of({.rows = {13, 5}, .n = 24, .k = 72, .gathered = true, .pad = 8, .shift = 4});
  check_all_of({.rows = {35, 6}, .n = 65, .k = 67, .gathered = true, .pad = 3});
  check_all_of({.rows = {35, 0, 6}, .n = 37, .k = 71});
  check_all_of({.rows = {35, 6}, .n = 1, .k = 1, .gathered = true});
}

TEST_CASE("bits depend neither on the tile's height nor on rows of other groups") {
  INFO("seed ", seed);
  setting const s{.rows = {17, 0, 40, 20, 5}, .n = 72, .k = 100, .gathered = true};
  nt_of<2> nt(s);
  nn_of<2> const nn(s);
  tn_of const tn(s);
  auto const low = run(nt);
  CHECK(same_bits(low, run(nt, 1000)));
  CHECK(same_bits(run(nn), run(nn, 1000)));
  CHECK(same_bits(run(tn), run(tn, 1000)));
  for (int64 r = 0; r < s.total(); ++r)
    if (r < 17 || r >= 57)
      for (int64 c = 0; c < s.k; ++c) nt.a(r, c) = poison<float>();
  nt.a.upload();
  auto const beside = run(nt);
  bool same = true;
  for (int64 m = 0; m < 2; ++m)
    for (int64 r = 17; r < 57; ++r)
      for (int64 c = 0; c < s.n; ++c) {
        int64 const place = (m * (s.bound() + 1) + r) * s.n + c;
        same = same && at(beside, place) == at(low, place);
      }
  CHECK(same);
}

TEST_CASE("a matrix that lies as its transpose is an operand of the other product") {
  INFO("seed ", seed);
  setting const s{.rows = {20, 33}, .n = 44, .k = 44};
  nt_of<1> const nt(s);
  nn_of<1> const nn(s);
  auto const lying = [](grouped_matrix<float const> const& w) {
    return std::array{transposed_matrix<float const>{w.data, w.group_stride, w.row_stride}};
  };
  auto const as_nn = collected<float, 1>(s, [&](auto const& epilogue) {
    grouped_gemm_nn<float>(by_tf32(), s.groups(), nt.offsets.get(), s.bound(), std::array{nt.a.view()},
                           lying(nt.w[0].view()), s.n, s.k, epilogue);
  });
  auto const as_nt = collected<float, 1>(s, [&](auto const& epilogue) {
    grouped_gemm_nt<float>(by_tf32(), s.groups(), nn.offsets.get(), s.bound(), nn.a[0].view(), lying(nn.w[0].view()),
                           s.n, s.k, epilogue);
  });
  CHECK(same_bits(as_nn, run(nt)));
  CHECK(same_bits(as_nt, run(nn)));
}
