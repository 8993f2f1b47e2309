// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/warp_row.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

constexpr int picks = 6, singles = 13;

/// What every verb makes of the rows a and b: numbers in `out` [singles + picks], what is left of the rows in place.
template <class Row, class S> MOIETY_HD void use(Row a, Row b, S* out) {
  int const size = a.size();
  out[0] = a.sum();
  out[1] = a.sum([](S v) { return v * v; });
  out[2] = mo::dot(a, b);
  out[3] = a.max();
  out[4] = static_cast<S>(a.argmax());
  out[8] = a.template sum_of_largest<1>(0, size);
  out[9] = a.template sum_of_largest<2>(size / 3, size);
  out[10] = a.template sum_of_largest<5>(size / 4, size / 4 * 3);
  out[11] = b.template sum_of_largest<3>(size / 2, size / 2);
  out[12] = b.template sum_of_largest<1>(size / 5, size / 5 + (size > 0 ? 1 : 0));
  a.remove(a.argmax());
  a.remove(-1);
  a.remove(size);
  out[5] = static_cast<S>(a.argmax());
  a.map(b, [](S v, S o) { return v == v && o == o ? v - o : v; });
  a.map_indexed([](S v, int i) { return v + static_cast<S>(i); });
  a.map([](S v) { return v == v ? v / 3 : S{7}; });
  out[6] = out[7] = 0;
  if (size > 0) {
    b[size - 1] = a[0];
    b[size / 2] += a[size - 1];
    out[6] = b[size / 2];
    out[7] = b[size - 1];
  }
  b.template largest<picks>([&](int rank, int i) { out[singles + rank] = static_cast<S>(i); });
}

template <class S, int N> __global__ void use_rows(S* a, S* b, S* out, int size) {
  mo::kernels::gpu::registers_of<S, N> a_values = {}, b_values = {};
  mo::kernels::warp_row<S, N> const a_row(a_values, size), b_row(b_values, size);
  a_row.each([&](int i, S& v) { v = a[i]; });
  b_row.each([&](int i, S& v) { v = b[i]; });
  S results[singles + picks];
  use(a_row, b_row, results);
  a_row.each([&](int i, S v) { a[i] = v; });
  for (int lane = 0; lane < 32; ++lane)  // all lanes have the same
    for (int i = 0; i < singles + picks; ++i)
      if (lane == mo::kernels::lane_of_thread()) out[lane * (singles + picks) + i] = results[i];
}

template <class S> std::vector<S> draw(int size, std::mt19937_64& words) {
  constexpr S infinity = std::numeric_limits<S>::infinity();
  std::normal_distribution<double> normal;
  std::uint64_t const kind = words() % 4;
  std::vector<S> values;
  for (int i = 0; i < size; ++i) {
    S v = static_cast<S>(normal(words));
    std::uint64_t const word = words();
    if (kind == 1) v = static_cast<S>(word % 3) - 1;
    if (kind == 2) v = word % 3 == 0 ? S{0} : (word % 3 == 1 ? -S{0} : S{-1});
    if (kind == 3 && word % 4 == 0) v = word % 8 == 0 ? -infinity : infinity;
    values.push_back(v);
  }
  return values;
}

template <class S, int N> void compare(int size) {
  std::uint64_t const seed = std::random_device{}();
  INFO("seed ", seed, ", ", size, " values");
  std::mt19937_64 words(seed);
  std::vector<S> a = draw<S>(size, words), b = draw<S>(size, words), expected(singles + picks);
  if (size > 0 && words() % 2 == 0) a[words() % a.size()] = std::numeric_limits<S>::quiet_NaN();
  testing::device_values<S> device_a(a), device_b(b), out(32 * (singles + picks));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  testing::succeed(cudaLaunchKernelEx(&config, use_rows<S, N>, device_a.data(), device_b.data(), out.data(),
                                      static_cast<int>(size)));
  use(mo::span_row<S>(a.data(), size), mo::span_row<S>(b.data(), size), expected.data());
  CHECK(testing::same_bits(device_a.host(), a));
  auto const found = out.host();
  for (std::size_t lane = 0; lane < 32; ++lane)
    for (std::size_t i = 0; i < expected.size(); ++i) {
      S const value = found[lane * expected.size() + i];
      INFO("result ", i, " of lane ", lane, ": ", value, ", expected ", expected[i]);
      bool const same = value == expected[i] ? std::signbit(value) == std::signbit(expected[i])
                                             : std::isnan(value) && std::isnan(expected[i]);
      CHECK(same);
    }
}

template <class S> void compare_sizes() {
  for (int const size : {0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 32}) compare<S, 1>(size);
  for (int const size : {33, 64}) compare<S, 2>(size);
  for (int const size : {1, 97, 128, 129, 160}) compare<S, 5>(size);
  for (int const size : {8, 1000, 1024}) compare<S, 32>(size);
}

}  // namespace

static_assert(mo::score_row<mo::kernels::warp_row<float, 4>> && mo::score_row<mo::kernels::warp_row<double, 1>>);

TEST_CASE("a row over the lanes of a warp has the bits of a span") {
  for (int round = 0; round < 10; ++round) {
    compare_sizes<float>();
    compare_sizes<double>();
  }
}
