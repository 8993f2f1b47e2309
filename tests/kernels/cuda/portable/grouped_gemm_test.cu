// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/grouped_gemm.cuh>

#include <kernels/cuda/portable/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE("random shapes of random groups") {
  INFO("seed ", seed);
  auto const below = [](int64 limit) { return static_cast<int64>(random_bits() % static_cast<unsigned>(limit)); };
  for (int i = 0; i < 5; ++i) {
    setting s{.rows = {}, .n = 1 + below(150), .k = 1 + below(100), .gathered = below(2) == 0};
    for (int64 g = 1 + below(9); g > 0; --g) s.rows.push_back(below(3) == 0 ? 0 : below(50));
    s.pad = below(2) == 0 ? 8 - s.k % 8 : below(5);
    s.slack = below(3) * 100;
    INFO("n ", s.n, " k ", s.k, " groups ", s.groups(), " rows ", s.total(), " gathered ", s.gathered, " pad ", s.pad);
    check_all<float, mo::bf16>(s);
    check_all<float, mo::fp16>(s);
    check_all<float, float>(s);
    check_all<double, double>(s);
    check_all<float, mo::bf16, float>(s);
    check_all<float, float, mo::fp16>(s);
  }
}

TEST_CASE_TEMPLATE("null offsets are one group of rows_bound rows", T, mo::bf16, mo::fp16, float, double) {
  INFO("seed ", seed);
  check_all<mo::sum_t<T>, T>({.rows = {77}, .n = 40, .k = 48, .offsets = false});
  check_all<mo::sum_t<T>, T>({.rows = {0}, .n = 40, .k = 48, .offsets = false});
}

TEST_CASE("results come out the same every time") {
  INFO("seed ", seed);
  setting const s{.rows = {33, 0, 90, 5}, .n = 136, .k = 72, .gathered = true, .accumulate = true};
  nt_case<float, mo::bf16, mo::bf16, 2> const nt(s);
  nn_case<float, mo::bf16, mo::bf16, 2> const nn(s);
  tn_case<float, mo::bf16, mo::bf16> const tn(s);
  auto const first = nt.run(), second = nn.run(), third = tn.run();
  for (int i = 0; i < 5; ++i) {
    CHECK(same_bits(nt.run(), first));
    CHECK(same_bits(nn.run(), second));
    CHECK(same_bits(tn.run(), third));
  }
}
