// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/host/panels.hpp>

#include <moiety/core/numbers.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mo = moiety;
namespace gemm = moiety::kernels::host_gemm;
namespace simd = moiety::simd;
using int64 = std::int64_t;

namespace {

/// A matrix whose every value says where it is; bf16 holds integers up to 256 exactly.
template <class T> struct numbered {
  int64 rows, cols;
  std::vector<T> values;

  numbered(int64 r, int64 c) : rows(r), cols(c) {
    for (int64 i = 0; i < r * c; ++i) values.push_back(static_cast<T>(static_cast<float>(1 + i % 251)));
  }
  T const* row(int64 i) const { return values.data() + i * cols; }
  float at(int64 i, int64 j) const { return i < rows && j < cols ? static_cast<float>(row(i)[j]) : 0.0f; }
};

template <class U> float part(U unit, int half) {
  if constexpr (std::same_as<U, gemm::bf16_pair>)
    return std::bit_cast<float>(half == 0 ? unit.bits << 16 : unit.bits & 0xffff0000u);
  else
    return static_cast<float>(unit);
}

/// value(step, half, lane) is what must lie at each place of the panels.
template <class U, class Value> bool panels_hold(std::vector<U> const& packed, int64 width, int64 steps, Value value) {
  gemm::panel_cut<U> const cut(width);
  bool right = true;
  for (int64 p = 0; p < cut.count; ++p)
    for (int64 s = 0; s < steps; ++s)
      for (int64 lane = 0; lane < cut.width(p); ++lane)
        for (int half = 0; half < gemm::values_per_unit<U>; ++half)
          right = right && part(packed[static_cast<std::size_t>(cut.first(p) * steps + s * cut.width(p) + lane)],
                                half) == value(s * gemm::values_per_unit<U> + half, cut.first(p) + lane);
  return right;
}

template <class U, class T> void check(int64 count, int64 width) {
  CAPTURE(count);
  CAPTURE(width);
  int64 const steps = gemm::steps_of<U>(count);
  gemm::panel_cut<U> const cut(width);
  std::vector<U> packed(static_cast<std::size_t>(cut.lanes() * steps));

  numbered<T> const across(count, width);
  gemm::pack_across(across, count, width, packed.data());
  CHECK(panels_hold<U>(packed, width, steps, [&](int64 k, int64 lane) { return across.at(k, lane); }));

  numbered<T> const along(width, count);
  gemm::pack_along(along, width, count, packed.data());
  CHECK(panels_hold<U>(packed, width, steps, [&](int64 k, int64 lane) {
    return along.at(std::min(lane, width - 1), k);  // missing rows repeat the last
  }));

  std::vector<U> strips(static_cast<std::size_t>(gemm::strip_units<U>(steps, width)));
  gemm::pack_strips(across, count, width, strips.data());
  bool right = true;
  for (int64 col = 0; col < gemm::round_up(width, gemm::most_narrow); ++col)
    for (int64 k = 0; k < steps * gemm::values_per_unit<U>; ++k) {
      int64 const strip = col / gemm::most_narrow * gemm::strip_stride<U>(steps);
      int64 const place = strip + k / gemm::values_per_unit<U> * gemm::most_narrow + col % gemm::most_narrow;
      right = right && part(strips[static_cast<std::size_t>(place)], static_cast<int>(k % gemm::values_per_unit<U>)) ==
                           across.at(k, col);
    }
  CHECK(right);
}

}  // namespace

TEST_CASE("panels differ in width by at most one register, and cover all columns") {
  for (int64 width = 0; width <= 300; ++width) {
    gemm::panel_cut<float> const cut(width);
    CHECK(cut.lanes() == gemm::round_up(width, simd::lanes<float>));
    for (int64 p = 0; p < cut.count; ++p) {
      CHECK((cut.vectors(p) >= 1 && cut.vectors(p) <= gemm::most_vectors));
      CHECK(cut.first(p) + cut.width(p) == cut.first(p + 1));
      CHECK(cut.vectors(0) - cut.vectors(p) <= 1);
    }
  }
}

TEST_CASE("packed operands hold every value in its place, zeros beyond") {
  for (int64 const count : {1, 2, 7, 31, 32, 33, 64})
    for (int64 const width : {1, 5, 8, 16, 17, 40, 96, 257}) {
      check<float, float>(count, width);
      check<double, double>(count, width);
      check<float, mo::bf16>(count, width);
      check<double, float>(count, width);
      check<gemm::bf16_pair, mo::bf16>(count, width);
    }
}
