// SPDX-License-Identifier: Apache-2.0
// The parts of the host bodies; the whole is tested in kernels/input_weights_test.cpp.
#include <moiety/kernels/host/input_weights.hpp>

#include <moiety/batch/row.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

TEST_CASE("a product has the bits of a row's, at any length") {
  for (std::size_t size = 0; size <= 130; ++size) {
    std::vector<float> a(size), b(size);
    for (std::size_t i = 0; i < size; ++i)
      a[i] = 1 / static_cast<float>(i + 3), b[i] = 1.1f - static_cast<float>(i % 7);
    auto const n = static_cast<std::int64_t>(size);
    mo::span_row<float> const left(a.data(), n), right(b.data(), n);
    CHECK(mo::kernels::detail::dot_of(a.data(), b.data(), n) == mo::dot(left, right));
  }
}
