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

/// Against sums in double of what the operands are after rounding, and of what they were.
template <class Case> void check(Case const& c) {
  auto const got = c.run_on(by_tf32());
  CHECK(difference(got, c.exact(rounded)) < 1e-5);
  CHECK(difference(got, c.exact(as_it_is<float>)) < 2e-3);
}

template <std::size_t M> void check_nt(setting const& s) { check(nt_of<M>(s)); }
template <std::size_t M> void check_nn(setting const& s) { check(nn_of<M>(s)); }
void check_tn(setting s) {
  for (bool const accumulate : {false, true}) {
    s.accumulate = accumulate;
    check(tn_of(s));
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
  setting const narrow{.rows = {35, 6}, .n = 1, .k = 1, .gathered = true};
  check_nt<1>(narrow), check_nt<2>(narrow), check_nn<1>(narrow), check_nn<2>(narrow);
  check_tn({.rows = {35, 6}, .n = 9, .k = 7, .gathered = true});  // of fewer sums, all may cancel
}

TEST_CASE("bits depend neither on the tile's height nor on rows of other groups") {
  INFO("seed ", seed);
  setting const s{.rows = {17, 0, 40, 20, 5}, .n = 72, .k = 100, .gathered = true};
  nt_of<2> nt(s);
  nn_of<2> const nn(s);
  tn_of const tn(s);
  auto const low = nt.run_on(by_tf32());
  CHECK(same_bits(low, nt.run_on(by_tf32(), 1000)));
  CHECK(same_bits(nn.run_on(by_tf32()), nn.run_on(by_tf32(), 1000)));
  CHECK(same_bits(tn.run_on(by_tf32()), tn.run_on(by_tf32(), 1000)));
  check_rows_alone(nt, 17, 57, low, [&] { return nt.run_on(by_tf32()); });
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
  CHECK(same_bits(as_nn, nt.run_on(by_tf32())));
  CHECK(same_bits(as_nt, nn.run_on(by_tf32())));
}
