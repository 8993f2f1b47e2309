// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/gather.cuh>

#include <moiety/kernels/fill_normal.hpp>

#include "cases.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("rows are copied on a device as on the host, and no others are touched", T, float, double,
                   mo::bf16) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  struct shape {
    std::int64_t tokens, cols, x_stride, out_stride;
  };
  for (shape const s :
       {shape{0, 8, 8, 8}, {1, 1, 1, 1}, {90, 64, 64, 64}, {50, 1100, 1100, 1104}, {33, 13, 17, 15}, {5000, 3, 3, 3}}) {
    testing::permutation_case order(s.tokens, 6, 4, mo::seed{number});
    testing::device_permutation const device(order);
    std::vector<T> x(static_cast<std::size_t>(s.tokens * s.x_stride));
    mo::kernels::fill_normal<T>(cpu, {x.data(), s.tokens, s.x_stride}, 1, mo::seed{number}, 2, 0);
    std::vector<T> out(static_cast<std::size_t>(s.tokens * 4 * s.out_stride), testing::poison<T>());
    testing::device_values<T> const d_x(x);
    testing::device_values<T> d_out(out);
    mo::kernels::gather<T>(cpu, order.host(), {x.data(), s.tokens, s.cols, s.x_stride},
                           {out.data(), s.tokens * 4, s.cols, s.out_stride});
    mo::kernels::gather<T>(gpu, device.view, {d_x.data(), s.tokens, s.cols, s.x_stride},
                           {d_out.data(), s.tokens * 4, s.cols, s.out_stride});
    auto const got = d_out.host();
    CHECK((out.empty() || std::memcmp(got.data(), out.data(), out.size() * sizeof(T)) == 0));
  }
}
