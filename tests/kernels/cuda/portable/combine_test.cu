// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/combine.cuh>

#include <moiety/kernels/fill_normal.hpp>

#include "cases.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("sums over slots have the bits of the host, with and without weights and base", T, float, double,
                   mo::bf16, mo::fp16) {
  using S = mo::sum_t<T>;
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  struct shape {
    std::int64_t tokens, slots, cols, row_stride, y_stride;
  };
  for (shape const s : {shape{0, 2, 8, 8, 8},
                        {1, 1, 1, 1, 1},
                        {70, 2, 64, 64, 64},
                        {40, 6, 1100, 1104, 1100},
                        {33, 5, 13, 17, 15},
                        {5000, 2, 3, 3, 3}})
    for (int const kind : {0, 1, 2, 3}) {
      testing::permutation_case order(s.tokens, 7, s.slots, mo::seed{number});
      testing::device_permutation const device(order);
      auto const random = [&]<class V>(std::vector<V> values, std::uint64_t stream) {
        auto const count = static_cast<std::int64_t>(values.size());
        mo::kernels::fill_normal<V>(cpu, {values.data(), 1, count}, 1, mo::seed{number}, stream, 0);
        return values;
      };
      auto const size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
      auto const rows = random(std::vector<T>(size(s.tokens * s.slots * s.row_stride)), 2);
      auto const weights = random(std::vector<S>(size(s.tokens * s.slots)), 3);
      auto const base = random(std::vector<S>(size(s.tokens * s.cols)), 4);
      std::vector<T> y(size(s.tokens * s.y_stride), testing::poison<T>());
      testing::device_values<T> const d_rows(rows);
      testing::device_values<S> const d_weights(weights), d_base(base);
      testing::device_values<T> d_y(y);
      bool const with_weights = kind % 2 != 0, with_base = kind / 2 != 0;
      mo::kernels::combine<T>(cpu, order.host(), {rows.data(), s.tokens * s.slots, s.cols, s.row_stride},
                              with_weights ? weights.data() : nullptr, with_base ? base.data() : nullptr,
                              {y.data(), s.tokens, s.cols, s.y_stride});
      mo::kernels::combine<T>(gpu, device.view, {d_rows.data(), s.tokens * s.slots, s.cols, s.row_stride},
                              with_weights ? d_weights.data() : nullptr, with_base ? d_base.data() : nullptr,
                              {d_y.data(), s.tokens, s.cols, s.y_stride});
      auto const got = d_y.host();
      CHECK((y.empty() || std::memcmp(got.data(), y.data(), y.size() * sizeof(T)) == 0));
    }
}
