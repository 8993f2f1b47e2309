// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/columns.cuh>

#include <moiety/core/numbers.hpp>

#include <cuda_runtime.h>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mo = moiety;
using testing::device_values;

namespace {

constexpr int width = 8, room = 24;

/// Columns from `first` on, doubled on the way; `seen` holds what was read, and last whether it moved wide.
template <class T> __global__ void double_columns(T const* from, int first, int count, T* to, mo::sum_t<T>* seen) {
  seen[width] = mo::kernels::gpu::moves_wide<width>(from + first, count) ? 1 : 0;
  mo::sum_t<T> values[width];
  mo::kernels::gpu::load_columns<width>(from + first, count, values);
  for (int i = 0; i < width; ++i) seen[i] = values[i], values[i] = 2 * values[i];
  mo::kernels::gpu::store_columns<width>(to + first, count, values);
}

}  // namespace

TEST_CASE_TEMPLATE("columns that exist are read and written, from any place; others are 0 and stay", T, float, double,
                   mo::bf16, mo::fp16) {
  using S = mo::sum_t<T>;
  std::vector<T> from;
  for (int i = 0; i < room; ++i) from.push_back(static_cast<T>(static_cast<S>(i + 1)));
  device_values<T> const there(from);
  for (int first = 0; first <= width; ++first)
    for (int count = 0; count <= width; ++count) {
      CAPTURE(first);
      CAPTURE(count);
      std::vector<T> wanted(room, testing::poison<T>());
      std::vector<S> values(width + 1, S{0});
      values[width] = count == width && first * static_cast<int>(sizeof(T)) % 16 == 0 ? 1 : 0;
      for (int i = 0; i < count; ++i) {
        values[static_cast<std::size_t>(i)] = static_cast<S>(first + i + 1);
        wanted[static_cast<std::size_t>(first + i)] = static_cast<T>(static_cast<S>(2 * (first + i + 1)));
      }
      device_values<T> to(std::int64_t{room});
      device_values<S> seen(std::int64_t{width + 1});
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(1), config.blockDim = dim3(1);
      testing::succeed(
          cudaLaunchKernelEx(&config, double_columns<T>, there.data(), first, count, to.data(), seen.data()));
      CHECK(testing::same_bits(to.host(), wanted));
      CHECK(testing::same_bits(seen.host(), values));
    }
}
