// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/host/micro_kernel.hpp>

#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>

#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace mo = moiety;
namespace gemm = moiety::kernels::host_gemm;
namespace simd = moiety::simd;
using int64 = std::int64_t;

namespace {

/// A unit, and what it adds to a sum by the scalar rule.
template <class U> U unit(std::mt19937& bits) {
  auto const value = [&] { return static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f; };
  if constexpr (std::same_as<U, gemm::bf16_pair>) {
    std::uint32_t const first = mo::bf16(value()).bits, second = mo::bf16(value()).bits;
    return {first | second << 16};
  } else {
    return static_cast<U>(value());
  }
}

template <class U> gemm::sum_of<U> add(U a, U b, gemm::sum_of<U> sum) {
  if constexpr (std::same_as<U, gemm::bf16_pair>) {
    auto const second = [](U u) { return std::bit_cast<float>(u.bits & 0xffff0000u); };
    auto const first = [](U u) { return std::bit_cast<float>(u.bits << 16); };
    return mo::fma(first(a), first(b), mo::fma(second(a), second(b), sum));
  } else {
    return mo::fma(a, b, sum);
  }
}

/// `halves`: the upper half of the last register is not to be touched.
template <class U>
void check(int64 rows, int vectors, int64 steps, bool resume, bool stream, [[maybe_unused]] bool halves = false) {
  using S = gemm::sum_of<U>;
  CAPTURE(rows);
  CAPTURE(vectors);
  CAPTURE(steps);
  int64 const width = vectors * simd::lanes<U>, high = gemm::kernel_rows(rows), stride = steps + 3;
  std::mt19937 bits(static_cast<unsigned>(rows * 100 + vectors));
  std::vector<U> narrow(static_cast<std::size_t>(high * stride)), wide(static_cast<std::size_t>(steps * width));
  for (U& u : narrow) u = unit<U>(bits);
  for (U& u : wide) u = unit<U>(bits);
  struct alignas(64) line {
    S values[64 / sizeof(S)];
  };
  std::vector<line> memory(static_cast<std::size_t>(high * width) / (64 / sizeof(S)) + 1);
  S* const sums = memory[0].values;
  std::vector<S> expected(static_cast<std::size_t>(high * width));
  auto const touched = [&](int64 i) { return !halves || i % width < width - simd::lanes<U> / 2; };
  for (int64 i = 0; i < high * width; ++i) {
    sums[i] = resume ? static_cast<S>(unit<S>(bits)) : std::numeric_limits<S>::quiet_NaN();
    S sum = resume || !touched(i) ? sums[i] : S{0};
    for (int64 k = 0; touched(i) && k < steps; ++k)
      sum = add(narrow[static_cast<std::size_t>(i / width * stride + k)],
                wide[static_cast<std::size_t>(k * width + i % width)], sum);
    expected[static_cast<std::size_t>(i)] = sum;
  }
  gemm::strided_rows<U> const strip{reinterpret_cast<std::byte const*>(narrow.data()),
                                    stride * static_cast<int64>(sizeof(U))};
  gemm::tile_sums<S> const to{resume ? sums : nullptr, width, sums, width, stream};
#if MOIETY_HAS_HALVES
  if (halves) gemm::half_kernel<U>(vectors, steps, strip, wide.data(), to, gemm::no_prefetch{});
#endif
  if (!halves) gemm::micro_kernel<U>(rows, vectors, steps, strip, wide.data(), to);
  simd::fence_stores();
  for (int64 i = 0; i < high * width; ++i)
    CHECK(std::bit_cast<std::array<std::byte, sizeof(S)>>(sums[i]) ==
          std::bit_cast<std::array<std::byte, sizeof(S)>>(expected[static_cast<std::size_t>(i)]));
}

}  // namespace

TEST_CASE_TEMPLATE("every shape of tile is the chain of its unit", U, float, double, gemm::bf16_pair) {
  for (int64 rows = 1; rows <= gemm::most_narrow; ++rows)
    for (int vectors = 1; vectors <= gemm::most_vectors; ++vectors)
      for (int64 const steps : {0, 1, 19}) {
        check<U>(rows, vectors, steps, false, false);
        check<U>(rows, vectors, steps, true, true);
      }
}

TEST_CASE_TEMPLATE("of a register that is half empty the lower half is the same chain", U, float, double,
                   gemm::bf16_pair) {
  if (!simd::has_halves) return;
  for (int const vectors : {2, 3})
    for (int64 const steps : {0, 1, 19})
      for (bool const resume : {false, true}) check<U>(gemm::most_narrow, vectors, steps, resume, false, true);
}

TEST_CASE("units are what both operands hold") {
  static_assert(std::same_as<gemm::unit_of<float, mo::bf16, mo::bf16>, gemm::bf16_pair>);
  static_assert(std::same_as<gemm::unit_of<float, mo::bf16, float>, float>);
  static_assert(std::same_as<gemm::unit_of<float, mo::fp16, mo::fp16>, float>);
  static_assert(std::same_as<gemm::unit_of<double, mo::bf16, mo::bf16>, double>);
  CHECK(gemm::steps_of<gemm::bf16_pair>(7) == 4);
  CHECK(gemm::steps_of<float>(7) == 7);
}

TEST_CASE("operands that lie with their steps side by side are turned on the way") {
  constexpr int64 lanes = simd::lanes<gemm::bf16_pair>;
  std::mt19937 bits(3);
  for (int64 const count : {int64{1}, int64{2}, 2 * lanes, 4 * lanes + 5}) {
    std::vector<std::vector<mo::bf16>> rows(2), columns(static_cast<std::size_t>(lanes));
    auto const fill = [&](auto& all) {
      for (auto& row : all)
        for (int64 k = 0; k < count; ++k) row.push_back(mo::bf16(unit<float>(bits)));
    };
    fill(rows), fill(columns);
    std::array<mo::bf16 const*, 2> const narrow{rows[0].data(), rows[1].data()};
    std::vector<mo::bf16 const*> wide;
    for (auto const& column : columns) wide.push_back(column.data());
    std::vector<float> sums(static_cast<std::size_t>(2 * lanes));
    gemm::transposing_kernel<gemm::bf16_pair, 2>(count, narrow.data(), wide.data(), sums.data(), lanes);
    for (int64 i = 0; i < 2 * lanes; ++i) {
      auto const &row = rows[static_cast<std::size_t>(i / lanes)],
                 &column = columns[static_cast<std::size_t>(i % lanes)];
      float sum = 0;
      for (std::size_t k = 0; k < row.size(); k += 2) {
        if (k + 1 < row.size()) sum = mo::fma<float>(row[k + 1], column[k + 1], sum);
        sum = mo::fma<float>(row[k], column[k], sum);
      }
      CHECK(sums[static_cast<std::size_t>(i)] == sum);
    }
  }
}
