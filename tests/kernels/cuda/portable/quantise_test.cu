// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/quantise.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::uint8_t poison = 0x55;

/// Rows of very different sizes, one of zeros, and some values that are not finite.
template <class T> std::vector<T> uneven(std::int64_t rows, std::int64_t cols, std::uint64_t number) {
  std::mt19937_64 words(number);
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    float const scale = r == 3 ? 0.0f : std::ldexp(1.0f, static_cast<int>(words() % 30) - 15);
    for (std::int64_t c = 0; c < cols; ++c)
      values[static_cast<std::size_t>(r * cols + c)] = static_cast<T>(normal(words) * scale);
  }
  values[values.size() / 2] = static_cast<T>(std::numeric_limits<float>::infinity());
  values[values.size() / 3] = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
  return values;
}

/// Quantised rows on the host and on a device.
struct both {
  std::vector<mo::e4m3> values;
  std::vector<float> scales;
  testing::device_values<mo::e4m3> d_values;
  testing::device_values<float> d_scales;

  both(std::int64_t rows, std::int64_t columns)
      : values(poisoned(rows * mo::kernels::quantised_stride(columns))),
        scales(static_cast<std::size_t>(rows), -1.0f),
        d_values(values),
        d_scales(scales) {}
  template <class Quantised> Quantised host() { return {values.data(), scales.data()}; }
  template <class Quantised> Quantised device() { return {d_values.data(), d_scales.data()}; }
  void compare() const {
    auto const got = d_values.host();
    CHECK((values.empty() || std::memcmp(got.data(), values.data(), values.size()) == 0));
    CHECK(d_scales.host() == scales);
  }

 private:
  static std::vector<mo::e4m3> poisoned(std::int64_t count) {
    std::vector<mo::e4m3> all(static_cast<std::size_t>(count));
    for (mo::e4m3& value : all) value.bits = poison;
    return all;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("rows are quantised on a device as on the host, and no others are touched", T, float, mo::bf16,
                   mo::fp16) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  constexpr std::int64_t rows = 40, groups = 3;
  for (std::int64_t const n : {1, 15, 16, 33, 128, 2100}) {
    CAPTURE(n);
    std::int64_t const stride = 2 * n + 3;
    auto const values = uneven<T>(rows, stride, number);
    std::vector<std::int32_t> index(rows);
    for (std::int64_t r = 0; r < rows; ++r)
      index[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(r * 29 % rows);
    std::vector<std::int64_t> const offsets{2, 2, 20, 36};
    testing::device_values<T> const d_values(values);
    testing::device_values<std::int32_t> const d_index(index);
    testing::device_values<std::int64_t> const d_offsets(offsets);
    using of = mo::kernels::rows_of<T>;
    using quantised = mo::kernels::quantised_rows;
    for (bool const gathered : {false, true}) {
      std::int32_t const* const host_index = gathered ? index.data() : nullptr;
      std::int32_t const* const device_index = gathered ? d_index.data() : nullptr;
      both one(rows, n), two(rows, 2 * n);
      mo::kernels::quantise_rows(cpu, groups, offsets.data(), rows, std::array{of{values.data(), stride, host_index}},
                                 n, one.host<quantised>());
      mo::kernels::quantise_rows(gpu, groups, d_offsets.data(), rows,
                                 std::array{of{d_values.data(), stride, device_index}}, n, one.device<quantised>());
      one.compare();
      mo::kernels::quantise_rows(
          cpu, groups, offsets.data(), rows,
          std::array{of{values.data(), stride, host_index}, of{values.data() + n, stride, host_index}}, n,
          two.host<quantised>());
      mo::kernels::quantise_rows(
          gpu, groups, d_offsets.data(), rows,
          std::array{of{d_values.data(), stride, device_index}, of{d_values.data() + n, stride, device_index}}, n,
          two.device<quantised>());
      two.compare();
    }
  }
}

TEST_CASE_TEMPLATE("matrices are quantised on a device as on the host, however they lie", T, float, mo::bf16) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  constexpr std::int64_t groups = 3;
  struct shape {
    std::int64_t n, k;
  };
  for (shape const s : {shape{1, 1}, {5, 20}, {64, 64}, {64, 16}, {131, 77}}) {
    CAPTURE(s.n);
    std::int64_t const size = s.n * s.k;
    auto const values = uneven<T>(groups * 2 * s.n, s.k, number);
    testing::device_values<T> const d_values(values);
    using quantised = mo::kernels::quantised_matrix;
    auto const check = [&]<class Stored>(Stored, std::int64_t row_stride) {
      both one(groups * s.n, s.k), two(groups * s.n, 2 * s.k);
      auto const at = [&](T const* data, std::int64_t m) { return Stored{data + m * size, 2 * size, row_stride}; };
      T const* const h = values.data();
      T const* const d = d_values.data();
      mo::kernels::quantise_matrices<T>(cpu, groups, std::array{at(h, 1)}, s.n, s.k, one.host<quantised>());
      mo::kernels::quantise_matrices<T>(gpu, groups, std::array{at(d, 1)}, s.n, s.k, one.device<quantised>());
      one.compare();
      mo::kernels::quantise_matrices<T>(cpu, groups, std::array{at(h, 0), at(h, 1)}, s.n, s.k, two.host<quantised>());
      mo::kernels::quantise_matrices<T>(gpu, groups, std::array{at(d, 0), at(d, 1)}, s.n, s.k, two.device<quantised>());
      two.compare();
    };
    check(mo::kernels::grouped_matrix<T const>{}, s.k);
    check(mo::kernels::transposed_matrix<T const>{}, s.n);
  }
}
