// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/fma_gemm.cuh>

#include <kernels/cuda/portable/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE_TEMPLATE("the host's bits: edges of tiles", S, float, double) {
  INFO("seed ", seed);
  for (int64 const rows : {15, 16, 17, 31, 32, 33, 64, 65}) check_nt<S, S>({.rows = {rows}, .n = 36, .k = 68});
  for (int64 const rows : {31, 33, 127, 128, 129}) check_all<S, S>({.rows = {rows, 256}, .n = 130, .k = 36});
  check_all<S, S>({.rows = {3, 70}, .n = 128, .k = 100});
  check_all<S, S>({.rows = {40}, .n = 132, .k = 16});
  check_tn<S, S>({.rows = {65, 0, 64, 90}, .n = 66, .k = 129, .pad = 3});
}

TEST_CASE_TEMPLATE("the host's bits: empty groups, one group with all, no rows, no k", S, float, double) {
  INFO("seed ", seed);
  check_all<S, S>({.rows = {0, 33, 0, 68, 1, 0}, .n = 40, .k = 20});
  check_all<S, S>({.rows = {0, 0, 0, 140, 0}, .n = 40, .k = 20});
  check_all<S, S>({.rows = {0, 0, 0}, .n = 16, .k = 16});
  check_all<S, S>({.rows = {9, 2}, .n = 16, .k = 0});
  check_all<S, S>({.rows = {9, 2}, .n = 0, .k = 16});
  check_all<S, S>({.rows = {}, .n = 16, .k = 16});
}

TEST_CASE_TEMPLATE("the host's bits: gathered rows, strides, rows that begin anywhere", S, float, double) {
  INFO("seed ", seed);
  check_all<S, S>({.rows = {40, 0, 35}, .n = 48, .k = 36, .gathered = true});
  check_all<S, S>({.rows = {13, 5}, .n = 23, .k = 71, .gathered = true, .pad = 1, .shift = 4});
  check_all<S, S>({.rows = {35, 0, 6}, .n = 37, .k = 71, .gathered = true, .pad = 2});
  check_all<S, S>({.rows = {35, 6}, .n = 1, .k = 1});
  check_all<S, S>({.rows = {70}, .n = 40, .k = 20, .shift = 1});
}

TEST_CASE("the host's bits: products of a router") {
  INFO("seed ", seed);
  setting const s{.rows = {75}, .n = 24, .k = 70, .pad = 2, .offsets = false};
  check_nt<float, mo::bf16, float>(s);
  check_nt<float, mo::fp16, float>(s);
  check_nn<float, mo::bf16, float>(s);
  check_tn<float, float, mo::bf16>(s);
  check_tn<float, float, mo::fp16>(s);
  check_tn<float, float, float>(s);
  setting const many{.rows = {200}, .n = 264, .k = 40, .offsets = false};
  check_nt<float, mo::bf16, float>(many);
  check_tn<float, float, mo::bf16>(many);
}

TEST_CASE_TEMPLATE("bits depend neither on the tile nor on rows of other groups", S, float, double) {
  INFO("seed ", seed);
  setting const s{.rows = {17, 0, 40, 20, 5}, .n = 72, .k = 50, .gathered = true};
  nt_case<S, S, S, 2> nt(s);
  nn_case<S, S, S, 2> const nn(s);
  auto const small = nt.run();
  CHECK(same_bits(small, nt.run(1000)));
  CHECK(same_bits(nn.run(), nn.run(1000)));
  for (int64 r = 0; r < s.total(); ++r)
    if (r < 17 || r >= 57)
      for (int64 c = 0; c < s.k; ++c) nt.a(r, c) = poison<S>();
  nt.a.upload();
  auto const beside = nt.run();
  bool same = true;
  for (int64 m = 0; m < 2; ++m)
    for (int64 r = 17; r < 57; ++r)
      for (int64 c = 0; c < s.n; ++c) {
        int64 const place = (m * (s.bound() + 1) + r) * s.n + c;
        same = same && at(beside, place) == at(small, place);
      }
  CHECK(same);
}

TEST_CASE_TEMPLATE("the host's bits, from tiles of all sizes", S, float, double) {
  INFO("seed ", seed);
  // Small, middle and large ones, of 4 multiprocessors as of 132, which take large ones from 99 blocks on.
  for (int64 const rows : {20, 60, 300, 700, 4500, 12673}) {
    setting const s{.rows = {rows}, .n = 72, .k = 17, .offsets = false};
    check_nt<S, S>(s);
    check_nn<S, S>(s);
    check_tn<S, S>({.rows = {17}, .n = rows, .k = 72});
  }
}

TEST_CASE_TEMPLATE("the smallest products keep their signs and zeros", S, float, double) {
  // A product that underflows to -0 stays -0 through what is not there: no term is added behind the last k.
  S const tiny = -std::numeric_limits<S>::denorm_min();
  nt_case<S, S, S, 1> nt({.rows = {3}, .n = 5, .k = 5, .pad = 3});
  for (int64 r = 0; r < 3; ++r)
    for (int64 c = 0; c < 5; ++c) nt.a(r, c) = c == 4 ? tiny : S{0};
  nt.a.upload();
  if (host_rounds_alike) CHECK(same_bits(nt.run(), nt.on_host()));
}
