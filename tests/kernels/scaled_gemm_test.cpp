// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/scaled_gemm.hpp>

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
using mo::kernels::grouped_matrix;
using mo::kernels::rows_of;

namespace {

constexpr std::int64_t groups = 3, rows = 50;

/// Whole numbers up to 8 times a power of two for each row, which e4m3 holds exactly.
std::vector<float> exact(std::int64_t count, std::int64_t columns, std::mt19937& words) {
  std::vector<float> all(static_cast<std::size_t>(count * columns));
  for (std::size_t i = 0; i < all.size(); ++i) {
    int const exponent = static_cast<int>(i / static_cast<std::size_t>(columns) * 7 % 13) - 6;
    all[i] = std::ldexp(static_cast<float>(static_cast<int>(words() % 17) - 8), exponent);
  }
  return all;
}

template <class Scaling> using operand = mo::kernels::quantised_operand<mo::host_engine, Scaling>;

struct problem {
  mo::host_engine engine{mo::host{.threads = 2}};
  std::mt19937 words{std::random_device{}()};
  std::vector<std::int64_t> offsets{0, 33, 33, rows};
  std::vector<std::int32_t> index;
  std::vector<mo::bf16> room, copies;

  problem() {
    for (std::int32_t r = 0; r < rows; ++r) index.push_back(r * 11 % static_cast<std::int32_t>(rows));
  }
  template <class Scaling> mo::kernels::e4m3_engine<mo::host_engine, Scaling> by(std::int64_t widest) {
    room.assign(static_cast<std::size_t>(rows * widest), mo::bf16(std::numeric_limits<float>::quiet_NaN()));
    return {engine, {room.data()}};
  }
  /// Room for `count` quantised matrices [n × columns] of each group.
  template <class Scaling>
  operand<Scaling> copy_of(std::int64_t number, std::int64_t count, std::int64_t n, std::int64_t columns) {
    copies.resize(static_cast<std::size_t>(count * groups * n * columns));
    return {copies.data() + number * groups * n * columns};
  }
  std::int64_t group_of(std::int64_t row) const { return row < 33 ? 0 : 2; }
};

void close(float got, double wanted, double size) {
  REQUIRE(std::abs(static_cast<double>(got) - wanted) <= 1e-5 * size);
}

}  // namespace

TEST_CASE_TEMPLATE("rows times several quantised matrices, rows as they lie and gathered", Scaling,
                   mo::kernels::row_scaled, mo::kernels::block_scaled) {
  problem p;
  for (std::int64_t const k : {1, 40, 300})
    for (std::int64_t const n : {1, 17, 300})
      for (bool const gathered : {false, true}) {
        auto const a = exact(rows, k, p.words), w = exact(2 * groups * n, k, p.words);
        auto const engine_of = p.by<Scaling>(k);
        std::array<operand<Scaling>, 2> matrices;
        for (std::int64_t m = 0; m < 2; ++m) {
          matrices[static_cast<std::size_t>(m)] = p.copy_of<Scaling>(m, 2, n, k);
          mo::kernels::quantise_matrices(
              p.engine, groups, std::array{grouped_matrix<float const>{w.data() + m * groups * n * k, n * k, k}}, n, k,
              matrices[static_cast<std::size_t>(m)]);
        }
        std::vector<float> y(static_cast<std::size_t>(2 * rows * n), std::numeric_limits<float>::quiet_NaN());
        rows_of<float> const from{a.data(), k, gathered ? p.index.data() : nullptr};
        grouped_gemm_nt<float>(engine_of, groups, p.offsets.data(), from, matrices, n, k,
                               [&](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols,
                                   std::array<float const*, 2> const& sums) {
                                 for (std::size_t m = 0; m < 2; ++m)
                                   std::copy_n(sums[m], cols,
                                               y.data() + (static_cast<std::int64_t>(m) * rows + row) * n + col);
                               });
        for (std::int64_t m = 0; m < 2; ++m)
          for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < n; ++c) {
              double sum = 0, size = 0;
              for (std::int64_t i = 0; i < k; ++i) {
                double const term =
                    static_cast<double>(from.row(r)[i]) *
                    static_cast<double>(w[static_cast<std::size_t>(((m * groups + p.group_of(r)) * n + c) * k + i)]);
                sum += term, size += std::abs(term);
              }
              close(y[static_cast<std::size_t>((m * rows + r) * n + c)], sum, size);
            }
      }
}

TEST_CASE_TEMPLATE("several operands of rows times one quantised matrix of all their columns", Scaling,
                   mo::kernels::row_scaled, mo::kernels::block_scaled) {
  problem p;
  constexpr std::int64_t n = 37, k = 45;
  auto const a = exact(rows, 2 * k, p.words), w = exact(groups * n, 2 * k, p.words);
  auto const matrix = p.copy_of<Scaling>(0, 1, n, 2 * k);
  mo::kernels::quantise_matrices(p.engine, groups, std::array{grouped_matrix<float const>{w.data(), n * 2 * k, 2 * k}},
                                 n, 2 * k, matrix);
  std::vector<float> y(rows * n, std::numeric_limits<float>::quiet_NaN());
  grouped_gemm_nn<float>(p.by<Scaling>(2 * k), groups, p.offsets.data(),
                         std::array{rows_of<float>{a.data(), 2 * k}, rows_of<float>{a.data() + k, 2 * k}},
                         std::array{matrix}, n, k,
                         [&](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols, float const* sums) {
                           std::copy_n(sums, cols, y.data() + row * n + col);
                         });
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < n; ++c) {
      double sum = 0, size = 0;
      for (std::int64_t i = 0; i < 2 * k; ++i) {
        double const term = static_cast<double>(a[static_cast<std::size_t>(r * 2 * k + i)]) *
                            static_cast<double>(w[static_cast<std::size_t>((p.group_of(r) * n + c) * 2 * k + i)]);
        sum += term, size += std::abs(term);
      }
      close(y[static_cast<std::size_t>(r * n + c)], sum, size);
    }
}

TEST_CASE_FIXTURE(problem, "matrices that are not quantised are multiplied as they are") {
  constexpr std::int64_t n = 5, k = 9;
  std::vector<float> a(rows * k), w(groups * n * k), plain(rows * n), scaled(rows * n);
  std::normal_distribution<float> normal;
  for (float& v : a) v = normal(words);
  for (float& v : w) v = normal(words);
  auto const into = [](std::vector<float>& y) {
    return [&y](std::int64_t, std::int64_t row, std::int64_t col, std::int64_t cols,
                std::array<float const*, 1> const& sums) { std::copy_n(sums[0], cols, y.data() + row * n + col); };
  };
  std::array const matrices{grouped_matrix<float const>{w.data(), n * k, k}};
  mo::kernels::grouped_gemm_nt<float>(engine, groups, offsets.data(), rows_of<float>{a.data(), k}, matrices, n, k,
                                      into(plain));
  auto const engine_of = by<mo::kernels::row_scaled>(k);
  grouped_gemm_nt<float>(engine_of, groups, offsets.data(), rows_of<float>{a.data(), k}, matrices, n, k, into(scaled));
  CHECK(plain == scaled);
}
