// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/jitter.cuh>

#include <moiety/kernels/fill_normal.hpp>
#include <moiety/router/jitter.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("noise on a device has the bits of the host, and touches nothing else", T, float, double, mo::bf16) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  mo::jitter<std::ratio<1, 4>> const noise{.key = mo::seed{number}};
  mo::token_table const where{.first_row = 77, .step = 5};
  struct shape {
    std::int64_t tokens, width, stride;
  };
  for (shape const s : {shape{0, 8, 8}, {1, 1, 3}, {60, 13, 15}, {7, 1100, 1100}, {3000, 2, 2}}) {
    std::vector<T> x(static_cast<std::size_t>(s.tokens * s.stride)), out(x.size(), testing::poison<T>());
    mo::kernels::fill_normal<T>(cpu, {x.data(), s.tokens, s.stride}, 1, mo::seed{number}, 2, 0);
    testing::device_values<T> d_x(x), d_out(out);
    auto const view = [&](auto* data) { return mo::matrix_view(data, s.tokens, s.width, s.stride); };
    mo::kernels::jitter_rows<T>(cpu, noise, where, view(static_cast<T const*>(x.data())), view(out.data()));
    mo::kernels::jitter_rows<T>(gpu, noise, where, view(static_cast<T const*>(d_x.data())), view(d_out.data()));
    CHECK(testing::same_bits(d_out.host(), out));
    mo::kernels::jitter_rows<T>(cpu, noise, where, view(static_cast<T const*>(x.data())), view(x.data()));
    mo::kernels::jitter_rows<T>(gpu, noise, where, view(static_cast<T const*>(d_x.data())), view(d_x.data()));
    CHECK(testing::same_bits(d_x.host(), x));
  }
}
