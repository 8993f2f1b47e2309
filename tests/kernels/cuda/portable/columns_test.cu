// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/columns.cuh>

#include <moiety/backend/cuda.cuh>
#include <moiety/core/numbers.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mo = moiety;
namespace gpu = mo::kernels::gpu;

namespace {

/// Columns of `from`, plus one, at the same place of `to`; `read` is what was read.
template <int N, class T, class S> __global__ void copy_plus_one(T const* from, int count, T* to, S* read) {
  S values[N];
  gpu::load_columns<N>(from, count, values);
  for (int i = 0; i < N; ++i) read[i] = values[i];
  for (S& v : values) v += 1;
  gpu::store_columns<N>(to, count, values);
}

template <class T, int N> void check(mo::cuda_engine& engine) {
  using S = mo::sum_t<T>;
  std::vector<T> values;
  for (int i = 0; i < 3 * N; ++i) values.push_back(static_cast<T>(static_cast<S>(i)));
  testing::device_values<T> const from(values);
  for (int first = 0; first <= N; ++first)  // aligned and not
    for (int count = 0; count <= N; ++count) {
      testing::device_values<T> to(3 * N);
      testing::device_values<S> read(N);
      engine.launch("copy", copy_plus_one<N, T, S>, {1, 1}, from.data() + first, count, to.data() + first, read.data());
      auto const got = to.host();
      std::vector<S> there(N, S{0});
      for (int i = 0; i < count; ++i) there[static_cast<std::size_t>(i)] = static_cast<S>(first + i);
      REQUIRE(testing::same_bits(read.host(), there));
      for (int i = 0; i < 3 * N; ++i) {
        T const wanted = i >= first && i < first + count ? static_cast<T>(static_cast<S>(i + 1)) : testing::poison<T>();
        REQUIRE(std::memcmp(&wanted, &got[static_cast<std::size_t>(i)], sizeof(T)) == 0);
      }
    }
}

}  // namespace

TEST_CASE_TEMPLATE("columns are read and written wherever they lie, and no others", T, float, double, mo::bf16,
                   mo::fp16) {
  mo::cuda_engine engine{mo::cuda{}};
  check<T, 8>(engine);
  check<T, 4>(engine);
  check<T, 2>(engine);
}
