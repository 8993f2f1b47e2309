// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/cublas_rows.cuh>

#include <moiety/core/random.hpp>
#include <moiety/experts/mlp.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace mo = moiety;
using testing::device_values;

namespace {

using silu_mlp = mo::gated_mlp<mo::silu>;
constexpr std::int64_t rows = 5, ffn = 300, tiles = 3;

std::vector<float> numbers(std::int64_t count, int stream) {
  std::vector<float> values;
  mo::normal_sequence next(mo::seed{29}, static_cast<std::uint64_t>(stream), 0);
  for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(next.next()));
  return values;
}

}  // namespace

TEST_CASE("rows are gathered by index, and as they lie") {
  mo::cuda_engine engine{mo::cuda{}};
  auto const x = numbers(4 * 9, 1);
  device_values<float> const from(x);
  device_values<std::int32_t> const index(std::vector<std::int32_t>{3, 0, 3});
  device_values<float> to(3 * 7);
  for (bool const by_index : {true, false}) {
    mo::detail::gather_rows<float>(engine, 3, 7, {from.data(), 9, by_index ? index.data() : nullptr}, to.data());
    auto const got = to.host();
    for (std::size_t r = 0; r < 3; ++r)
      for (std::size_t c = 0; c < 7; ++c) CHECK(got[r * 7 + c] == x[(by_index ? 3 - r % 2 * 3 : r) * 9 + c]);
  }
}

TEST_CASE("activations, their derivative, and the sums of each tile of columns") {
  mo::cuda_engine engine{mo::cuda{}};
  auto const z = numbers(rows * 2 * ffn, 2), da = numbers(rows * ffn, 3), weights = numbers(rows, 4);
  device_values<float> const dev_z(z), dev_da(da), dev_weights(weights);
  device_values<float> a(rows * ffn), dz(rows * 2 * ffn), scaled(rows * ffn), parts(rows * tiles);
  mo::detail::activate_rows<silu_mlp>(engine, rows, ffn, dev_z.data(), static_cast<float const*>(nullptr), a.data());
  mo::detail::differentiate_rows<silu_mlp>(engine, rows, ffn, dev_z.data(), dev_da.data(), dev_weights.data(),
                                           dz.data(), scaled.data(), parts.data());
  auto const got_a = a.host(), got_dz = dz.host(), got_scaled = scaled.host(), got_parts = parts.host();
  for (std::size_t r = 0; r < rows; ++r) {
    double inner[tiles] = {};
    for (std::size_t c = 0; c < ffn; ++c) {
      mo::array<double, 2> const at{z[r * 2 * ffn + c], z[r * 2 * ffn + ffn + c]};
      mo::array<double, 2> slope;
      double const value = silu_mlp::value(at), gradient = da[r * ffn + c], weight = weights[r];
      silu_mlp::derivative(at, weight * gradient, slope);
      inner[c / 128] += gradient * value;
      REQUIRE(got_a[r * ffn + c] == doctest::Approx(value).epsilon(1e-5));
      REQUIRE(got_scaled[r * ffn + c] == doctest::Approx(weight * value).epsilon(1e-5));
      REQUIRE(std::abs(got_dz[r * 2 * ffn + c] - slope[0]) <= 1e-5 * (1 + std::abs(slope[0])));
      REQUIRE(std::abs(got_dz[r * 2 * ffn + ffn + c] - slope[1]) <= 1e-5 * (1 + std::abs(slope[1])));
    }
    for (std::size_t tile = 0; tile < tiles; ++tile)
      CHECK(std::abs(got_parts[r * tiles + tile] - inner[tile]) <= 1e-4 * (1 + std::abs(inner[tile])));
  }
}

TEST_CASE("sums are rounded to elements, and no row is fine") {
  mo::cuda_engine engine{mo::cuda{}};
  auto const sums = numbers(300, 5);
  device_values<float> const from(sums);
  device_values<mo::bf16> to(300);
  mo::detail::round_rows(engine, 0, from.data(), to.data());
  mo::detail::round_rows(engine, 300, from.data(), to.data());
  auto const got = to.host();
  for (std::size_t i = 0; i < 300; ++i) CHECK(static_cast<float>(got[i]) == static_cast<float>(mo::bf16(sums[i])));
}
