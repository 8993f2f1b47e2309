// SPDX-License-Identifier: Apache-2.0
// Compiled by nvcc only: the CPU run has no cuBLAS.
#include <moiety/experts/cublas_handle.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;
using testing::device_values;

namespace {

constexpr std::int64_t m = 3, n = 5, k = 4;

/// Small whole numbers, whose products and sums are exact.
std::vector<float> numbers(std::int64_t count, std::int64_t factor) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(i * factor % 7 - 3));
  return values;
}

float at(std::vector<float> const& v, std::int64_t i) { return v[static_cast<std::size_t>(i)]; }

}  // namespace

TEST_CASE("row-major products in three directions, with strides, added or not") {
  mo::cuda_engine engine{mo::cuda{}};
  mo::detail::cublas_stream const multiply(engine);
  auto const a = numbers(m * 8, 3), b = numbers(n * 8, 5);  // a [m × k], b [n × k], rows 8 apart
  device_values<float> const da(a), db(b);
  device_values<float> nt(m * n);
  multiply.nt<float, float>({m, n, k}, {da.data(), 8}, {db.data(), 8}, {nt.data(), n});
  device_values<float> nn(std::vector<float>(m * k, 1)), tn(std::vector<float>(k * k, 2)),
      none(std::vector<float>(4, 9));
  // nt's result [m × n] times b [n × k], added to ones; aᵀ a [k × k], written over what is there.
  multiply.nn<float, float>({m, k, n}, {nt.data(), n}, {db.data(), 8}, {nn.data(), k}, true);
  multiply.tn<float>({k, k, m}, {da.data(), 8}, {da.data(), 8}, {tn.data(), k}, false);
  multiply.tn<float>({2, 1, 0}, {da.data(), 8}, {da.data(), 8}, {none.data(), 2}, false);
  auto const got_nt = nt.host(), got_nn = nn.host(), got_tn = tn.host();
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (std::int64_t c = 0; c < k; ++c) sum += at(a, i * 8 + c) * at(b, j * 8 + c);
      CHECK(at(got_nt, i * n + j) == sum);
    }
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t c = 0; c < k; ++c) {
      float sum = 1;
      for (std::int64_t j = 0; j < n; ++j) sum += at(got_nt, i * n + j) * at(b, j * 8 + c);
      CHECK(at(got_nn, i * k + c) == sum);
    }
  for (std::int64_t i = 0; i < k; ++i)
    for (std::int64_t j = 0; j < k; ++j) {
      float sum = 0;
      for (std::int64_t r = 0; r < m; ++r) sum += at(a, r * 8 + i) * at(a, r * 8 + j);
      CHECK(at(got_tn, i * k + j) == sum);
    }
  CHECK(none.host() == std::vector<float>{0, 9, 0, 9});  // an empty sum writes zeros, and nothing between rows
}

TEST_CASE("a failure of cuBLAS is a cuda_error with its name") {
  CHECK_THROWS_WITH_AS(mo::detail::expect(CUBLAS_STATUS_INVALID_VALUE, "a product of cuBLAS"),
                       "a product of cuBLAS: CUBLAS_STATUS_INVALID_VALUE.", mo::cuda_error);
}
