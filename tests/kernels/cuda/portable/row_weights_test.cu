// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/row_weights.cuh>

#include "cases.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("weights between slots and rows move on a device as on the host", S, float, double) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  for (std::int64_t const tokens : {0, 1, 300}) {
    testing::permutation_case order(tokens, 5, 3, mo::seed{number});
    testing::device_permutation const device(order);
    std::int64_t const blocks = 3;
    auto const random = [&](std::int64_t count, std::uint64_t stream) {
      std::vector<S> values;
      for (std::int64_t i = 0; i < count; ++i)
        values.push_back(static_cast<S>(mo::normal(mo::seed{number}, stream, static_cast<std::uint64_t>(i))));
      return values;
    };
    auto const weights = random(tokens * 3, 1), parts = random(tokens * 3 * blocks, 2);
    std::vector<S> rows(weights.size(), S{-9}), slots(weights.size(), S{-9});
    testing::device_values<S> const d_weights(weights), d_parts(parts);
    testing::device_values<S> d_rows(rows), d_slots(slots);
    mo::kernels::spread_weights<S>(cpu, order.host(), weights.data(), rows.data());
    mo::kernels::spread_weights<S>(gpu, device.view, d_weights.data(), d_rows.data());
    mo::kernels::gather_weight_gradients<S>(cpu, order.host(), parts.data(), blocks, slots.data());
    mo::kernels::gather_weight_gradients<S>(gpu, device.view, d_parts.data(), blocks, d_slots.data());
    CHECK(d_rows.host() == rows);
    CHECK(d_slots.host() == slots);
  }
}
