// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/quantise.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::uint8_t poison = 0x55;

float scale_of(float largest) { return mo::kernels::quantising_scale(mo::kernels::magnitude_bits(largest)); }

/// Values of very different rows: some large, some tiny, some all zeros.
std::vector<float> uneven(std::int64_t rows, std::int64_t cols, std::uint64_t number) {
  std::mt19937_64 words(number);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-60, 60);
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    float const scale = words() % 8 == 0 ? 0.0f : std::ldexp(1.0f, exponent(words));
    for (std::int64_t c = 0; c < cols; ++c) values[static_cast<std::size_t>(r * cols + c)] = normal(words) * scale;
  }
  return values;
}

/// A row must be what the header says of its values.
void check_row(std::vector<double> const& values, mo::e4m3 const* got, double scale) {
  double largest = 0;
  for (double const v : values)
    if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
  CHECK(std::exp2(std::round(std::log2(scale))) == scale);
  CHECK(largest <= 448 * scale);
  CHECK((scale == std::ldexp(1.0, -126) || largest > 448 * scale / 2 || (largest == 0 && scale == 1)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      CHECK(std::isnan(static_cast<float>(got[i])));
    else
      REQUIRE(got[i].bits == mo::e4m3(static_cast<float>(values[i] / scale)).bits);
  }
}

struct quantised {
  std::vector<mo::e4m3> values;
  std::vector<float> scales;

  quantised(std::int64_t rows, std::int64_t columns)
      : values(static_cast<std::size_t>(rows * mo::kernels::quantised_stride(columns))),
        scales(static_cast<std::size_t>(rows), -1.0f) {
    for (auto& value : values) value.bits = poison;
  }
  mo::kernels::quantised_rows rows() { return {values.data(), scales.data()}; }
  mo::kernels::quantised_matrix matrix() { return {values.data(), scales.data()}; }
};

}  // namespace

TEST_CASE("the scale of a row is the least power of two under which its largest value fits") {
  CHECK(scale_of(0) == 1);
  CHECK(mo::kernels::magnitude_bits(-std::numeric_limits<float>::infinity()) == 0);
  CHECK(mo::kernels::magnitude_bits(std::numeric_limits<float>::quiet_NaN()) == 0);
  CHECK(scale_of(448) == 1);
  CHECK(scale_of(std::nextafter(448.0f, 1e9f)) == 2);
  CHECK(scale_of(224) == 0.5f);
  CHECK(scale_of(std::numeric_limits<float>::max()) == 0x1p120f);
  CHECK(scale_of(std::numeric_limits<float>::denorm_min()) == 0x1p-126f);
  CHECK(scale_of(0x1.8p-117f) == 0x1p-125f);
  std::mt19937 words(std::random_device{}());
  for (int i = 0; i < 10000; ++i) {
    float const largest =
        std::ldexp(1 + static_cast<float>(words() % 4096) / 4096, static_cast<int>(words() % 240) - 117);
    float const scale = scale_of(largest);
    INFO(largest);
    REQUIRE(largest <= 448 * scale);
    REQUIRE(largest > 224 * scale);
  }
}

TEST_CASE_TEMPLATE("rows are quantised as they lie and gathered, side by side, and only those of the groups", T, float,
                   mo::bf16, mo::fp16) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  mo::host_engine engine{mo::host{.threads = 3}};
  constexpr std::int64_t rows = 70;
  for (std::int64_t const n : {1, 15, 16, 33, 200}) {
    auto const wide = uneven(rows, 2 * n + 3, number);
    std::vector<T> values;
    for (float const v : wide) values.push_back(static_cast<T>(v));
    values[static_cast<std::size_t>(7 * (2 * n + 3))] = static_cast<T>(std::numeric_limits<float>::infinity());
    std::vector<std::int32_t> index(rows);
    for (std::int64_t r = 0; r < rows; ++r)
      index[static_cast<std::size_t>(r)] = static_cast<std::int32_t>((r * 29) % rows);
    std::vector<std::int64_t> const offsets{2, 2, 40, 66};
    for (bool const gathered : {false, true}) {
      quantised to(rows, 2 * n);
      mo::kernels::rows_of<T> const first{values.data(), 2 * n + 3, gathered ? index.data() : nullptr},
          second{values.data() + n, 2 * n + 3, gathered ? index.data() : nullptr};
      mo::kernels::quantise_rows(engine, 3, offsets.data(), rows, std::array{first, second}, n, to.rows());
      std::int64_t const stride = mo::kernels::quantised_stride(2 * n);
      for (std::int64_t r = 0; r < rows; ++r) {
        mo::e4m3 const* const got = to.values.data() + r * stride;
        bool const there = r >= 2 && r < 66;
        CHECK((to.scales[static_cast<std::size_t>(r)] > 0) == there);
        std::vector<double> wanted;
        for (std::int64_t c = 0; c < 2 * n; ++c)
          wanted.push_back(static_cast<double>(static_cast<float>(first.row(r)[c])));
        if (there) check_row(wanted, got, static_cast<double>(to.scales[static_cast<std::size_t>(r)]));
        for (std::int64_t c = there ? 2 * n : 0; c < stride; ++c) REQUIRE(got[c].bits == poison);
      }
    }
  }
}

TEST_CASE_TEMPLATE("matrices have a scale for each output, however they lie", T, float, mo::bf16) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  mo::host_engine engine{mo::host{.threads = 3}};
  constexpr std::int64_t groups = 3;
  struct shape {
    std::int64_t n, k;
  };
  for (shape const s : {shape{1, 1}, {5, 20}, {64, 16}, {131, 37}}) {
    std::vector<T> upright, turned;  // two matrices: [group][matrix][n][k] and [group][matrix][k][n]
    for (float const v : uneven(groups * 2 * s.n, s.k, number)) upright.push_back(static_cast<T>(v));
    turned.resize(upright.size());
    for (std::int64_t g = 0; g < 2 * groups; ++g)
      for (std::int64_t i = 0; i < s.n; ++i)
        for (std::int64_t j = 0; j < s.k; ++j)
          turned[static_cast<std::size_t>((g * s.k + j) * s.n + i)] =
              upright[static_cast<std::size_t>((g * s.n + i) * s.k + j)];
    using lying = mo::kernels::grouped_matrix<T const>;
    using transposed = mo::kernels::transposed_matrix<T const>;
    std::int64_t const size = s.n * s.k;
    quantised a(groups * s.n, 2 * s.k), b(groups * s.n, 2 * s.k);
    mo::kernels::quantise_matrices<T>(
        engine, groups, std::array{lying{upright.data(), 2 * size, s.k}, lying{upright.data() + size, 2 * size, s.k}},
        s.n, s.k, a.matrix());
    mo::kernels::quantise_matrices<T>(
        engine, groups,
        std::array{transposed{turned.data(), 2 * size, s.n}, transposed{turned.data() + size, 2 * size, s.n}}, s.n, s.k,
        b.matrix());
    for (std::int64_t row = 0; row < groups * s.n; ++row) {
      std::vector<double> wanted;
      for (std::int64_t m = 0; m < 2; ++m)
        for (std::int64_t j = 0; j < s.k; ++j)
          wanted.push_back(static_cast<double>(static_cast<float>(
              upright[static_cast<std::size_t>(((row / s.n * 2 + m) * s.n + row % s.n) * s.k + j)])));
      check_row(wanted, a.values.data() + row * mo::kernels::quantised_stride(2 * s.k),
                static_cast<double>(a.scales[static_cast<std::size_t>(row)]));
    }
    CHECK(a.scales == b.scales);
    CHECK(std::equal(a.values.begin(), a.values.end(), b.values.begin(),
                     [](mo::e4m3 x, mo::e4m3 y) { return x.bits == y.bits; }));
  }
}
