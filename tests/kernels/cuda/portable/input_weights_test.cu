// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/input_weights.cuh>

#include <moiety/kernels/fill_normal.hpp>

#include "cases.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("weighted copies and their gradients have the bits of the host, and touch nothing else", T, float,
                   double, mo::bf16) {
  using S = mo::sum_t<T>;
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  struct shape {
    std::int64_t tokens, cols, x_stride, out_stride;
  };
  for (shape const s :
       {shape{0, 8, 8, 8}, {1, 1, 1, 1}, {90, 64, 64, 64}, {40, 1100, 1100, 1104}, {33, 13, 17, 15}, {3000, 3, 3, 3}}) {
    testing::permutation_case order(s.tokens, 6, 4, mo::seed{number});
    testing::device_permutation const device(order);
    auto const drawn = [&]<class V>(V, std::int64_t count, std::uint64_t stream) {
      std::vector<V> values(static_cast<std::size_t>(count));
      mo::kernels::fill_normal<V>(cpu, {values.data(), 1, count}, 1, mo::seed{number}, stream, 0);
      return values;
    };
    auto const x = drawn(T{}, s.tokens * s.x_stride, 2);
    auto const weights = drawn(S{}, s.tokens * 4, 3);
    testing::device_values<T> const d_x(x);
    testing::device_values<S> const d_weights(weights);
    std::vector<T> out(static_cast<std::size_t>(s.tokens * 4 * s.out_stride), testing::poison<T>());
    testing::device_values<T> d_out(out);
    mo::kernels::gather_weighted<T>(cpu, order.host(), weights.data(), {x.data(), s.tokens, s.cols, s.x_stride},
                                    {out.data(), s.tokens * 4, s.cols, s.out_stride});
    mo::kernels::gather_weighted<T>(gpu, device.view, d_weights.data(), {d_x.data(), s.tokens, s.cols, s.x_stride},
                                    {d_out.data(), s.tokens * 4, s.cols, s.out_stride});
    CHECK(testing::same_bits(d_out.host(), out));

    auto const rows = drawn(T{}, s.tokens * 4 * s.out_stride, 4);
    testing::device_values<T> const d_rows(rows);
    std::vector<S> by_slot(static_cast<std::size_t>(s.tokens * 4), testing::poison<S>());
    testing::device_values<S> d_by_slot(by_slot);
    mo::kernels::input_weight_gradients<T>(cpu, order.host(), {rows.data(), s.tokens * 4, s.cols, s.out_stride},
                                           {x.data(), s.tokens, s.cols, s.x_stride}, by_slot.data());
    mo::kernels::input_weight_gradients<T>(gpu, device.view, {d_rows.data(), s.tokens * 4, s.cols, s.out_stride},
                                           {d_x.data(), s.tokens, s.cols, s.x_stride}, d_by_slot.data());
    CHECK(testing::same_bits(d_by_slot.host(), by_slot));
  }
}
