// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/fill_normal.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("normals on a device are those of the host", T, float, double, mo::bf16, mo::fp16) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  struct shape {
    std::int64_t rows, cols, stride, first;
  };
  for (shape const s : {shape{0, 5, 5, 0}, {1, 1, 1, 3}, {37, 13, 16, 1001}, {3, 700, 700, 2}, {50, 800, 800, 5}}) {
    std::vector<T> wanted(static_cast<std::size_t>(s.rows * s.stride), testing::poison<T>());
    testing::device_values<T> got(wanted);
    mo::kernels::fill_normal<T>(cpu, {wanted.data(), s.rows, s.cols, s.stride}, 0.3, mo::seed{number}, 5, s.first);
    mo::kernels::fill_normal<T>(gpu, {got.data(), s.rows, s.cols, s.stride}, 0.3, mo::seed{number}, 5, s.first);
    auto const values = got.host();
    CHECK((values.empty() || std::memcmp(values.data(), wanted.data(), values.size() * sizeof(T)) == 0));
  }
}
