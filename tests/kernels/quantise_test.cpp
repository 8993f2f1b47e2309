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
using mo::kernels::block_scaled;
using mo::kernels::row_scaled;

namespace {

constexpr std::uint16_t poison = 0x5555;
constexpr float infinity = std::numeric_limits<float>::infinity(),
                not_a_number = std::numeric_limits<float>::quiet_NaN();

float scale_of(float largest) { return mo::kernels::quantising_scale(mo::kernels::magnitude_bits(largest)); }

/// Values of very different rows and columns: some large, some tiny, some all zeros.
std::vector<float> uneven(std::int64_t rows, std::int64_t cols, std::uint64_t number) {
  std::mt19937_64 words(number);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-5, 5);
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    int const of_row = exponent(words);
    for (std::int64_t c = 0; c < cols; ++c)
      values[static_cast<std::size_t>(r * cols + c)] =
          r % 8 == 5 ? 0 : std::ldexp(normal(words), of_row + exponent(words) * (c / 100 % 2 == 0 ? 1 : 0));
  }
  return values;
}

/// A matrix of values as they are, and where they share scales: blocks of so many rows and columns.
struct wanted {
  std::int64_t rows, columns, block_rows, block_columns;
  std::vector<float> values;

  /// What the header says of element (r, c), from all that share its scale.
  float at(std::int64_t r, std::int64_t c) const {
    double largest = 0;
    for (std::int64_t i = r / block_rows * block_rows; i < std::min(rows, (r / block_rows + 1) * block_rows); ++i)
      for (std::int64_t j = c / block_columns * block_columns;
           j < std::min(columns, (c / block_columns + 1) * block_columns); ++j)
        if (double const v = static_cast<double>(value(i, j)); std::isfinite(v))
          largest = std::max(largest, std::abs(v));
    double scale = 1;
    if (largest > 0) scale = std::exp2(std::max(-117.0, std::ceil(std::log2(largest / 448))));
    if (!std::isfinite(value(r, c))) return not_a_number;
    return static_cast<float>(static_cast<double>(static_cast<float>(
                                  mo::e4m3(static_cast<float>(static_cast<double>(value(r, c)) / scale)))) *
                              scale);
  }
  float value(std::int64_t r, std::int64_t c) const { return values[static_cast<std::size_t>(r * columns + c)]; }
};

bool same(mo::bf16 got, float value) {
  return std::isnan(value) ? std::isnan(static_cast<float>(got)) : static_cast<float>(got) == value;
}

template <class Scaling> constexpr std::int64_t columns_sharing(std::int64_t columns) {
  return Scaling::columns == 0 ? columns : Scaling::columns;
}

std::vector<mo::bf16> poisoned(std::int64_t count) {
  std::vector<mo::bf16> all(static_cast<std::size_t>(count));
  for (mo::bf16& value : all) value.bits = poison;
  return all;
}

template <class Scaling> using operand = mo::kernels::quantised_operand<mo::host_engine, Scaling>;

}  // namespace

TEST_CASE("the scale of values is the least power of two under which the largest fits") {
  CHECK(scale_of(0) == 1);
  CHECK(mo::kernels::magnitude_bits(-infinity) == 0);
  CHECK(mo::kernels::magnitude_bits(not_a_number) == 0);
  CHECK(mo::kernels::magnitude_bits(-2.0f) == mo::kernels::magnitude_bits(2.0f));
  CHECK(scale_of(448) == 1);
  CHECK(scale_of(std::nextafter(448.0f, 1e9f)) == 2);
  CHECK(scale_of(224) == 0.5f);
  CHECK(scale_of(std::numeric_limits<float>::max()) == 0x1p120f);
  CHECK(scale_of(std::numeric_limits<float>::denorm_min()) == 0x1p-117f);
  CHECK(scale_of(0x1.8p-108f) == 0x1p-116f);
  std::mt19937 words(std::random_device{}());
  for (int i = 0; i < 10000; ++i) {
    float const largest =
        std::ldexp(1 + static_cast<float>(words() % 4096) / 4096, static_cast<int>(words() % 230) - 108);
    float const scale = scale_of(largest);
    INFO(largest);
    REQUIRE(largest <= 448 * scale);
    REQUIRE(largest > 224 * scale);
  }
}

TEST_CASE("a value keeps four bits down to 2^-13 of the largest that shares its scale, then is off by 2^-17 of that") {
  std::mt19937_64 words(std::random_device{}());
  std::uniform_real_distribution<double> mantissa(1, 2), depth(0, 18);
  for (int i = 0; i < 100000; ++i) {
    double const largest = mantissa(words), value = largest * std::exp2(-depth(words));
    double const scale = static_cast<double>(scale_of(static_cast<float>(largest)));
    auto const q = mo::kernels::quantised(static_cast<float>(value), static_cast<float>(1 / scale));
    double const miss = std::abs(static_cast<double>(static_cast<float>(q)) * scale - value);
    REQUIRE(miss <= (value >= largest * 0x1p-13 ? value * 0x1.0001p-4 : largest * 0x1.0001p-17));
  }
}

TEST_CASE("memory of operands: values in bf16 on the host, bytes and scales on a device") {
  using on_host = mo::kernels::quantised_operand<mo::host_engine, block_scaled>;
  CHECK(on_host::row_bytes(3, 100) == 640);  // 600 in whole blocks of 64
  CHECK(on_host::matrix_bytes(2, 3, 100) == 1216);
  using by_row = mo::kernels::quantised_operand<mo::cuda_engine, row_scaled>;
  using by_block = mo::kernels::quantised_operand<mo::cuda_engine, block_scaled>;
  CHECK(by_row::row_bytes(40, 2000) == 40 * 2000 + 192);
  CHECK(by_row::row_bytes(64, 17) == 64 * 32 + 256);
  CHECK(by_block::row_bytes(40, 2000) == 40 * 2000 + 40 * 16 * 4);
  CHECK(by_row::matrix_bytes(4, 768, 2048) == 4 * 768 * (2048 + 4));
  CHECK(by_block::matrix_bytes(4, 768, 2048) == 4 * 768 * 2048 + 4 * 6 * 16 * 4);
  CHECK(by_block::matrix_bytes(4, 770, 2048) == 4 * 770 * 2048 + 4 * 7 * 16 * 4);
  std::byte memory[1];
  auto const device = by_block::matrices_at(memory, 4, 768, 2048);
  CHECK(reinterpret_cast<std::byte*>(device.scales) - reinterpret_cast<std::byte*>(device.values) == 4 * 768 * 2048);
  CHECK(device.matrices(768, 40).row_stride == 48);
  CHECK(device.matrices(768, 40).group_stride == 768 * 48);
}

TEST_CASE_TEMPLATE("rows are quantised as they lie and gathered, side by side, and only those of the groups", T, float,
                   mo::bf16, mo::fp16) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  mo::host_engine engine{mo::host{.threads = 3}};
  constexpr std::int64_t rows = 20;
  auto const check = [&]<class Scaling>(Scaling, std::int64_t n) {
    CAPTURE(n);
    std::int64_t const stride = 2 * n + 3;
    std::vector<T> values;
    for (float const v : uneven(rows, stride, number)) values.push_back(static_cast<T>(v));
    values[static_cast<std::size_t>(7 * stride)] = static_cast<T>(infinity);
    values[static_cast<std::size_t>(9 * stride + n)] = static_cast<T>(not_a_number);
    std::vector<std::int32_t> index;
    for (std::int32_t r = 0; r < rows; ++r) index.push_back(r * 9 % 20);
    std::vector<std::int64_t> const offsets{2, 2, 11, 18};
    for (bool const gathered : {false, true}) {
      auto to = poisoned(rows * 2 * n);
      mo::kernels::rows_of<T> const first{values.data(), stride, gathered ? index.data() : nullptr},
          second{values.data() + n, stride, gathered ? index.data() : nullptr};
      mo::kernels::quantise_rows(engine, 3, offsets.data(), rows, std::array{first, second}, n,
                                 operand<Scaling>{to.data()});
      wanted from{rows, 2 * n, 1, columns_sharing<Scaling>(2 * n), {}};
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < 2 * n; ++c) from.values.push_back(static_cast<float>(first.row(r)[c]));
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < 2 * n; ++c) {
          mo::bf16 const got = to[static_cast<std::size_t>(r * 2 * n + c)];
          if (r < 2 || r >= 18)
            REQUIRE(got.bits == poison);
          else
            REQUIRE(same(got, from.at(r, c)));
        }
    }
  };
  for (std::int64_t const n : {1, 33, 70, 128, 200}) check(row_scaled{}, n), check(block_scaled{}, n);
}

TEST_CASE_TEMPLATE("matrices share scales output by output, or block by block, however they lie", T, float, mo::bf16) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  mo::host_engine engine{mo::host{.threads = 3}};
  constexpr std::int64_t groups = 2;
  auto const check = [&]<class Scaling>(Scaling, std::int64_t n, std::int64_t k) {
    CAPTURE(n);
    CAPTURE(k);
    std::vector<T> upright, turned;  // two matrices: [group][matrix][n][k] and [group][matrix][k][n]
    for (float const v : uneven(groups * 2 * n, k, number)) upright.push_back(static_cast<T>(v));
    upright[static_cast<std::size_t>(n * k) / 2] = static_cast<T>(infinity);
    turned.resize(upright.size());
    for (std::int64_t g = 0; g < 2 * groups; ++g)
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < k; ++j)
          turned[static_cast<std::size_t>((g * k + j) * n + i)] =
              upright[static_cast<std::size_t>((g * n + i) * k + j)];
    using lying = mo::kernels::grouped_matrix<T const>;
    using transposed = mo::kernels::transposed_matrix<T const>;
    std::int64_t const size = n * k;
    auto a = poisoned(groups * n * 2 * k), b = a;
    mo::kernels::quantise_matrices(
        engine, groups, std::array{lying{upright.data(), 2 * size, k}, lying{upright.data() + size, 2 * size, k}}, n, k,
        operand<Scaling>{a.data()});
    mo::kernels::quantise_matrices(
        engine, groups,
        std::array{transposed{turned.data(), 2 * size, n}, transposed{turned.data() + size, 2 * size, n}}, n, k,
        operand<Scaling>{b.data()});
    for (std::int64_t g = 0; g < groups; ++g) {
      wanted from{n, 2 * k, Scaling::outputs, columns_sharing<Scaling>(2 * k), {}};
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t m = 0; m < 2; ++m)
          for (std::int64_t j = 0; j < k; ++j)
            from.values.push_back(static_cast<float>(upright[static_cast<std::size_t>(((g * 2 + m) * n + i) * k + j)]));
      for (std::int64_t i = 0; i < n; i += std::max<std::int64_t>(1, n / 9))
        for (std::int64_t c = 0; c < 2 * k; ++c) {
          auto const at = static_cast<std::size_t>((g * n + i) * 2 * k + c);
          float const value = from.at(i, c);
          REQUIRE(same(a[at], value));
          REQUIRE(same(b[at], value));
        }
    }
    CHECK(std::equal(a.begin(), a.end(), b.begin(), [](mo::bf16 x, mo::bf16 y) { return x.bits == y.bits; }));
  };
  for (auto const& [n, k] : {std::array<std::int64_t, 2>{1, 1}, {5, 20}, {64, 16}, {131, 37}, {140, 200}}) {
    check(row_scaled{}, n, k);
    check(block_scaled{}, n, k);
  }
}
