// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/fill_normal.hpp>

#include <moiety/core/numbers.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("every element is the normal of its logical index, whatever the threads and strides", T, float,
                   double, mo::bf16, mo::fp16) {
  constexpr std::int64_t rows = 131, cols = 67, stride = 70;
  mo::host_engine engine{mo::host{.threads = 3}};
  std::vector<T> memory(static_cast<std::size_t>(rows * stride), T(7.0f));
  mo::kernels::fill_normal<T>(engine, {memory.data(), rows, cols, stride}, 0.25, mo::seed{5}, 9, 1001);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < stride; ++j) {
      double const drawn = 0.25 * mo::normal(mo::seed{5}, 9, static_cast<std::uint64_t>(1001 + i * cols + j));
      T const wanted = j < cols ? static_cast<T>(static_cast<mo::sum_t<T>>(drawn)) : T(7.0f);
      REQUIRE(static_cast<mo::sum_t<T>>(memory[static_cast<std::size_t>(i * stride + j)]) ==
              static_cast<mo::sum_t<T>>(wanted));
    }
}

TEST_CASE("a row has its values wherever a rank begins; a null matrix is refused") {
  mo::context<> ctx;
  mo::matrix<float> all(5, 9), tail(2, 9);
  mo::fill_normal(ctx, all, mo::seed{3});
  mo::fill_normal(ctx, tail, mo::seed{3}, mo::first_row{3});
  for (std::int64_t j = 0; j < 9; ++j) CHECK(all(4, j) == tail(1, j));
  CHECK_THROWS_WITH_AS(mo::fill_normal(ctx, mo::matrix_view<float>(nullptr, 2, 2), mo::seed{1}),
                       "fill_normal was given a null matrix.", mo::data_error);
  CHECK_NOTHROW(mo::fill_normal(ctx, mo::matrix_view<float>(nullptr, 0, 2), mo::seed{1}));
}
