// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/scaled_gemm.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;
using mo::kernels::rows_of;

namespace scaled_gemm_test {

constexpr std::int64_t groups = 3, rows = 50;

/// Writes M matrices [rows × n] of sums, one after another; and with sums of rows, of each tile of columns.
template <std::size_t M, bool SumsRows> struct store_sums {
  static constexpr bool sums_rows = SumsRows;
  float* to;
  float* tiles;
  std::int64_t n;

  template <int N>
  __device__ auto operator()(std::int64_t, std::int64_t row, std::int64_t col, int count,
                             float const (&sums)[M][N]) const {
    float all = 0;
    for (std::size_t m = 0; m < M; ++m)
      for (int c = 0; c < count; ++c) {
        to[(static_cast<std::int64_t>(m) * rows + row) * n + col + c] = sums[m][c];
        all += sums[m][c];
      }
    if constexpr (SumsRows) return all;
  }
  __device__ void row_sum(std::int64_t row, std::int64_t tile, float sum) const {
    tiles[row * ((n + 127) / 128) + tile] = sum;
  }
};

}  // namespace scaled_gemm_test

namespace {

using namespace scaled_gemm_test;

/// Whole numbers up to 8 times a power of two for each row: e4m3 holds them, and sums of their products are exact in float.
std::vector<mo::bf16> exact(std::int64_t count, std::int64_t columns, std::mt19937& words) {
  std::vector<mo::bf16> all;
  for (std::int64_t i = 0; i < count * columns; ++i)
    all.emplace_back(
        std::ldexp(static_cast<float>(static_cast<int>(words() % 17) - 8), static_cast<int>(i / columns * 7 % 13) - 6));
  return all;
}

struct problem {
  mo::cuda_engine gpu{mo::cuda{}};
  std::uint64_t number = std::random_device{}();
  std::mt19937 words{static_cast<std::mt19937::result_type>(number)};
  std::vector<std::int64_t> offsets{0, 33, 33, rows};
  testing::device_values<std::int64_t> d_offsets{offsets};
  std::vector<std::int32_t> index;

  problem() {
    for (std::int32_t r = 0; r < rows; ++r) index.push_back(r * 11 % static_cast<std::int32_t>(rows));
  }

  double wanted(mo::bf16 const* row, std::vector<mo::bf16> const& w, std::int64_t r, std::int64_t c, std::int64_t n,
                std::int64_t k) const {
    mo::bf16 const* const column = w.data() + ((r < 33 ? 0 : 2) * n + c) * k;
    double sum = 0;
    for (std::int64_t i = 0; i < k; ++i)
      sum += static_cast<double>(static_cast<float>(row[i])) * static_cast<double>(static_cast<float>(column[i]));
    return sum;
  }
};

template <class Scaling> using operand = mo::kernels::quantised_operand<mo::cuda_engine, Scaling>;

/// Device memory of quantised rows, or of matrices of n outputs.
template <class Scaling> struct memory_of {
  std::int64_t count, n, columns;
  testing::device_values<std::byte> memory;

  static memory_of rows_of(std::int64_t count, std::int64_t columns) {
    return {count, 0, columns, testing::device_values<std::byte>(operand<Scaling>::row_bytes(count, columns))};
  }
  static memory_of matrices_of(std::int64_t n, std::int64_t columns) {
    return {groups, n, columns, testing::device_values<std::byte>(operand<Scaling>::matrix_bytes(groups, n, columns))};
  }
  operand<Scaling> view() {
    return n == 0 ? operand<Scaling>::rows_at(memory.data(), count, columns)
                  : operand<Scaling>::matrices_at(memory.data(), groups, n, columns);
  }
};

}  // namespace

TEST_CASE_TEMPLATE("rows times quantised matrices on a device are exact where operands and sums are", Scaling,
                   mo::kernels::row_scaled, mo::kernels::block_scaled) {
  problem p;
  INFO("seed ", p.number);
  for (std::int64_t const k : {1, 40, 300})
    for (std::int64_t const n : {1, 17, 140})
      for (bool const gathered : {false, true}) {
        CAPTURE(k);
        CAPTURE(n);
        auto const a = exact(rows, k, p.words), first = exact(groups * n, k, p.words),
                   second = exact(groups * n, k, p.words);
        testing::device_values<mo::bf16> const d_a(a), d_first(first), d_second(second);
        testing::device_values<std::int32_t> const d_index(p.index);
        auto room = memory_of<Scaling>::rows_of(rows, k);
        auto w0 = memory_of<Scaling>::matrices_of(n, k), w1 = memory_of<Scaling>::matrices_of(n, k);
        using lying = mo::kernels::grouped_matrix<mo::bf16 const>;
        mo::kernels::quantise_matrices(p.gpu, groups, std::array{lying{d_first.data(), n * k, k}}, n, k, w0.view());
        mo::kernels::quantise_matrices(p.gpu, groups, std::array{lying{d_second.data(), n * k, k}}, n, k, w1.view());
        testing::device_values<float> d_y(2 * rows * n);
        grouped_gemm_nt<float>(mo::kernels::e4m3_engine<mo::cuda_engine, Scaling>{p.gpu, room.view()}, groups,
                               p.d_offsets.data(), rows,
                               rows_of<mo::bf16>{d_a.data(), k, gathered ? d_index.data() : nullptr},
                               std::array{w0.view(), w1.view()}, n, k, store_sums<2, false>{d_y.data(), nullptr, n});
        auto const y = d_y.host();
        for (std::int64_t m = 0; m < 2; ++m)
          for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < n; ++c)
              REQUIRE(static_cast<double>(y[static_cast<std::size_t>((m * rows + r) * n + c)]) ==
                      p.wanted(a.data() + (gathered ? p.index[static_cast<std::size_t>(r)] : r) * k,
                               m == 0 ? first : second, r, c, n, k));
      }
}

TEST_CASE_TEMPLATE("several operands of rows are quantised as one on a device, and epilogues may sum rows", Scaling,
                   mo::kernels::row_scaled, mo::kernels::block_scaled) {
  problem p;
  INFO("seed ", p.number);
  constexpr std::int64_t n = 150, k = 45;
  auto const a = exact(rows, 2 * k, p.words), w = exact(groups * n, 2 * k, p.words);
  testing::device_values<mo::bf16> const d_a(a), d_w(w);
  auto room = memory_of<Scaling>::rows_of(rows, 2 * k);
  auto matrix = memory_of<Scaling>::matrices_of(n, 2 * k);
  using lying = mo::kernels::grouped_matrix<mo::bf16 const>;
  mo::kernels::quantise_matrices(p.gpu, groups, std::array{lying{d_w.data(), n * 2 * k, 2 * k}}, n, 2 * k,
                                 matrix.view());
  testing::device_values<float> d_y(rows * n), d_tiles(rows * 2);
  grouped_gemm_nn<float>(mo::kernels::e4m3_engine<mo::cuda_engine, Scaling>{p.gpu, room.view()}, groups,
                         p.d_offsets.data(), rows,
                         std::array{rows_of<mo::bf16>{d_a.data(), 2 * k}, rows_of<mo::bf16>{d_a.data() + k, 2 * k}},
                         std::array{matrix.view()}, n, k, store_sums<1, true>{d_y.data(), d_tiles.data(), n});
  auto const y = d_y.host(), tiles = d_tiles.host();
  for (std::int64_t r = 0; r < rows; ++r) {
    double sums[2] = {}, sizes[2] = {};
    for (std::int64_t c = 0; c < n; ++c) {
      auto const got = static_cast<double>(y[static_cast<std::size_t>(r * n + c)]);
      REQUIRE(got == p.wanted(a.data() + r * 2 * k, w, r, c, n, 2 * k));
      sums[c / 128] += got, sizes[c / 128] += std::abs(got);
    }
    for (std::int64_t tile = 0; tile < 2; ++tile)
      CHECK(std::abs(static_cast<double>(tiles[static_cast<std::size_t>(r * 2 + tile)]) - sums[tile]) <=
            1e-5 * sizes[tile]);
  }
}
