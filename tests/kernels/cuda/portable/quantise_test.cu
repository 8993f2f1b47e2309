// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/quantise.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
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

using mo::kernels::block_scaled;
using mo::kernels::row_scaled;

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

/// Rows of `columns` quantised on the host and on a device: values that must be the same, zeros behind them, and memory that
/// must stay poisoned.
template <class Scaling> struct both {
  using host_operand = mo::kernels::quantised_operand<mo::host_engine, Scaling>;
  using device_operand = mo::kernels::quantised_operand<mo::cuda_engine, Scaling>;
  std::int64_t rows, columns;
  std::vector<mo::bf16> wanted;
  testing::device_values<std::byte> memory;

  both(std::int64_t r, std::int64_t c)
      : rows(r),
        columns(c),
        wanted(static_cast<std::size_t>(r * c), testing::poison<mo::bf16>()),
        memory(device_operand::matrix_bytes(1, r, c) + device_operand::row_bytes(r, c)) {}
  host_operand host() { return {wanted.data()}; }
  device_operand device() { return device_operand::rows_at(memory.data(), rows, columns); }

  /// Scales are of `outputs` rows together, beginning anew with each group of n rows; rows without scales are not there.
  void compare(std::int64_t outputs, std::int64_t n) {
    auto const bytes = memory.host();
    device_operand const at = device();
    auto const offset = [&](auto const* p) {
      return reinterpret_cast<std::byte const*>(p) - static_cast<std::byte const*>(memory.data());
    };
    std::int64_t const stride = mo::kernels::quantised_stride(columns),
                       of_row = mo::kernels::scales_of_row<Scaling>(columns),
                       shared = Scaling::columns == 0 ? columns : Scaling::columns;
    std::int64_t wrong = 0;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < stride; ++c) {
        mo::e4m3 q;
        std::memcpy(&q, bytes.data() + offset(at.values + r * stride + c), 1);
        mo::bf16 const value = wanted[static_cast<std::size_t>(r * columns + std::min(c, columns - 1))];
        if (value.bits == 0xffff ||
            c >= columns) {  // neither host nor device wrote the row, or both only what is before
          wrong += q.bits != (value.bits == 0xffff ? 0xff : 0) ? 1 : 0;
          continue;
        }
        float scale;
        std::int64_t const scales_row = outputs == 1 ? r : r / n * ((n + outputs - 1) / outputs) + r % n / outputs;
        std::memcpy(&scale, bytes.data() + offset(at.scales + scales_row * of_row + c / shared), sizeof(scale));
        float const got = static_cast<float>(q) * scale, wants = static_cast<float>(value);
        wrong += (std::isnan(wants) ? std::isnan(got) : got == wants) ? 0 : 1;
      }
    CHECK(wrong == 0);
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
  auto const check = [&]<class Scaling>(Scaling, std::int64_t n) {
    CAPTURE(n);
    std::int64_t const stride = 2 * n + 3;
    auto const values = uneven<T>(rows, stride, number);
    std::vector<std::int32_t> index;
    for (std::int32_t r = 0; r < rows; ++r) index.push_back(r * 29 % 40);
    std::vector<std::int64_t> const offsets{2, 2, 20, 36};
    testing::device_values<T> const d_values(values);
    testing::device_values<std::int32_t> const d_index(index);
    testing::device_values<std::int64_t> const d_offsets(offsets);
    using of = mo::kernels::rows_of<T>;
    for (bool const gathered : {false, true}) {
      std::int32_t const* const host_index = gathered ? index.data() : nullptr;
      std::int32_t const* const device_index = gathered ? d_index.data() : nullptr;
      both<Scaling> one(rows, n), two(rows, 2 * n);
      mo::kernels::quantise_rows(cpu, groups, offsets.data(), rows, std::array{of{values.data(), stride, host_index}},
                                 n, one.host());
      mo::kernels::quantise_rows(gpu, groups, d_offsets.data(), rows,
                                 std::array{of{d_values.data(), stride, device_index}}, n, one.device());
      one.compare(1, rows);
      mo::kernels::quantise_rows(
          cpu, groups, offsets.data(), rows,
          std::array{of{values.data(), stride, host_index}, of{values.data() + n, stride, host_index}}, n, two.host());
      mo::kernels::quantise_rows(
          gpu, groups, d_offsets.data(), rows,
          std::array{of{d_values.data(), stride, device_index}, of{d_values.data() + n, stride, device_index}}, n,
          two.device());
      two.compare(1, rows);
    }
  };
  for (std::int64_t const n : {1, 15, 16, 33, 128, 2100}) check(row_scaled{}, n), check(block_scaled{}, n);
}

TEST_CASE_TEMPLATE("matrices are quantised on a device as on the host, however they lie", T, float, mo::bf16) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  constexpr std::int64_t groups = 3;
  auto const check = [&]<class Scaling, class Stored>(Scaling, Stored, std::int64_t n, std::int64_t k,
                                                      std::int64_t row_stride) {
    CAPTURE(n);
    CAPTURE(k);
    std::int64_t const size = n * k;
    auto const values = uneven<T>(groups * 2 * n, k, number);
    testing::device_values<T> const d_values(values);
    both<Scaling> one(groups * n, k), two(groups * n, 2 * k);
    auto const at = [&](T const* data, std::int64_t m) { return Stored{data + m * size, 2 * size, row_stride}; };
    T const* const h = values.data();
    T const* const d = d_values.data();
    mo::kernels::quantise_matrices(cpu, groups, std::array{at(h, 1)}, n, k, one.host());
    mo::kernels::quantise_matrices(gpu, groups, std::array{at(d, 1)}, n, k, one.device());
    one.compare(Scaling::outputs, n);
    mo::kernels::quantise_matrices(cpu, groups, std::array{at(h, 0), at(h, 1)}, n, k, two.host());
    mo::kernels::quantise_matrices(gpu, groups, std::array{at(d, 0), at(d, 1)}, n, k, two.device());
    two.compare(Scaling::outputs, n);
  };
  for (auto const& [n, k] : {std::array<std::int64_t, 2>{1, 1}, {5, 20}, {64, 64}, {64, 16}, {131, 77}, {140, 150}}) {
    using lying = mo::kernels::grouped_matrix<T const>;
    using transposed = mo::kernels::transposed_matrix<T const>;
    check(row_scaled{}, lying{}, n, k, k), check(row_scaled{}, transposed{}, n, k, n);
    check(block_scaled{}, lying{}, n, k, k), check(block_scaled{}, transposed{}, n, k, n);
  }
}
