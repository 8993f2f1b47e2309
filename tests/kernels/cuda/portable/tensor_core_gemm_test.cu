// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/tensor_core_gemm.cuh>

#include <kernels/cuda/portable/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE_TEMPLATE("heights at the edges of tiles, in tall and in low tiles", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  for (int64 const rows : {31, 32, 33, 127, 128, 129}) {
    check_nt<float, T>({.rows = {rows}, .n = 24, .k = 72, .slack = 200});
    nn_case<float, T, T, 1>({.rows = {0, rows, 0, 0, 0}, .n = 24, .k = 72}).check();
  }
}

TEST_CASE_TEMPLATE("widths at the edges of tiles, many steps", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  check_all<float, T>({.rows = {3, 70}, .n = 128, .k = 392});
  check_all<float, T>({.rows = {40}, .n = 136, .k = 64});
  check_all<float, T>({.rows = {40}, .n = 264, .k = 8});
  check_tn<float, T>({.rows = {65, 0, 64, 190}, .n = 130, .k = 129, .pad = 7});
}

TEST_CASE_TEMPLATE("empty groups, one group with all, no rows, no k", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  check_all<float, T>({.rows = {0, 33, 0, 128, 1, 0}, .n = 40, .k = 72});
  check_all<float, T>({.rows = {0, 0, 0, 140, 0}, .n = 40, .k = 72});
  check_all<float, T>({.rows = {0, 0, 0}, .n = 16, .k = 16});
  check_all<float, T>({.rows = {9, 2}, .n = 16, .k = 0});
  check_all<float, T>({.rows = {9, 2}, .n = 0, .k = 16});
  check_all<float, T>({.rows = {}, .n = 16, .k = 16});
}

TEST_CASE_TEMPLATE("gathered rows, strides, partial chunks of wide rows", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  check_all<float, T>({.rows = {70, 0, 65}, .n = 48, .k = 136, .gathered = true});
  check_all<float, T>({.rows = {13, 5}, .n = 24, .k = 72, .gathered = true, .pad = 16, .shift = 8});
  for (int64 const rest : {1, 3, 7})
    check_all<float, T>({.rows = {35, 6}, .n = 64 + rest, .k = 128 + rest, .gathered = true, .pad = 8 - rest});
}

TEST_CASE_TEMPLATE("rows that begin anywhere", T, mo::bf16, mo::fp16) {
  INFO("seed ", seed);
  check_all<float, T>({.rows = {35, 0, 6}, .n = 37, .k = 71});
  check_all<float, T>({.rows = {35, 6}, .n = 1, .k = 1, .gathered = true});
  check_all<float, T>({.rows = {130}, .n = 40, .k = 72, .pad = 8, .shift = 1});
  check_all<float, T>({.rows = {20, 3}, .n = 139, .k = 133, .gathered = true, .pad = 2});
}

TEST_CASE("three and four matrices side by side, or in one sum") {
  INFO("seed ", seed);
  setting const s{.rows = {20, 33}, .n = 72, .k = 72};
  nt_case<float, mo::bf16, mo::bf16, 3>(s).check();
  nt_case<float, mo::fp16, mo::fp16, 4>(s).check();
  nn_case<float, mo::bf16, mo::bf16, 3>(s).check();
}

TEST_CASE("bits depend neither on the tile's height nor on rows of other groups") {
  INFO("seed ", seed);
  for (bool const gathered : {false, true}) {
    setting const s{.rows = {17, 0, 40, 20, 5}, .n = 72, .k = 200, .gathered = gathered};
    nt_case<float, mo::bf16, mo::bf16, 2> nt(s);
    nn_case<float, mo::fp16, mo::fp16, 2> const nn(s);
    tn_case<float, mo::bf16, mo::bf16> const tn(s);
    auto const low = nt.run();
    CHECK(same_bits(low, nt.run(1000)));
    CHECK(same_bits(nn.run(), nn.run(1000)));
    CHECK(same_bits(tn.run(), tn.run(1000)));
    check_rows_alone(
        nt, 17, 57, low, [&] { return nt.run(); }, [&] { return nt.run(1000); });
  }
}
