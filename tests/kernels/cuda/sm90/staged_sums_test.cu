// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/sm90/staged_sums.cuh>

#include <cuda_runtime.h>

#include <doctest/doctest.h>
#include <device_memory.hpp>
#include <kernels/cuda/sm90/cases.hpp>

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace mo = moiety;
using namespace moiety::kernels;
using int64 = std::int64_t;
using testing::device_values;

namespace {

/// What stands in row r and column c of a tile: exact in bf16, and different within 64 rows and 4 columns.
MOIETY_HD float value(int row, int col) { return static_cast<float>((row * 4 + col % 4) % 256 - 128); }

/// Two warpgroups store the sums of a tile; every thread loads some of it.
template <class Sum, int Columns> __global__ void store_and_load(float* out) {
  sm90::staged_sums<Sum, Columns> const staged{testing::tiles()};
  int const thread = static_cast<int>(threadIdx.x) % 128, first = static_cast<int>(threadIdx.x) / 128 * 64;
  float sums[Columns / 2];
  for (int i = 0; i < Columns / 2; ++i) {
    auto const at = sm90::sum_element(thread, i);
    sums[i] = value(first + at.row, at.col);
  }
  staged.store(sums, first);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) * 8; i < 128 * Columns; i += 256 * 8) {
    float block[8];
    staged.load(i / Columns, i % Columns, block);
    for (int c = 0; c < 8; ++c) out[i + c] = block[c];
  }
}

template <class Sum, int Columns> void check_staged() {
  device_values<float> out(128 * Columns);
  int const bytes = 128 * Columns * static_cast<int>(sizeof(Sum)) + testing::slack;
  testing::launch_block(&store_and_load<Sum, Columns>, 256, bytes, out.data());
  auto const got = out.host();
  bool right = true;
  for (int row = 0; row < 128; ++row)
    for (int col = 0; col < Columns; ++col)
      right = right && got[static_cast<std::size_t>(row * Columns + col)] == value(row, col);
  CHECK(right);
}

/// The sums of a tile, each its row and column, to matrices of n columns.
__global__ void pairs_of_tile(sm90::tile_task of, int64 n, gpu::store_matrix<float> to) {
  int const thread = static_cast<int>(threadIdx.x) % 128, first = static_cast<int>(threadIdx.x) / 128 * 64;
  float sums[128];
  for (int i = 0; i < 128; ++i) {
    auto const at = sm90::sum_element(thread, i);
    sums[i] = static_cast<float>((first + at.row) * 1000 + at.col);
  }
  sm90::store_pairs<256>(sums, first, of, n, to);
}

}  // namespace

TEST_CASE("sums are staged and loaded where they belong") {
  check_staged<float, 128>();
  check_staged<mo::bf16, 256>();
  check_staged<mo::fp16, 256>();
}

TEST_CASE_TEMPLATE("a warp's stores meet in no bank, and places are each their own", Sum, float, mo::bf16) {
  constexpr int columns = sizeof(Sum) == 2 ? 256 : 128, words = static_cast<int>(sizeof(Sum)) / 2;
  using staged = sm90::staged_sums<Sum, columns>;
  std::set<int> places;
  for (int row = 0; row < 128; ++row)
    for (int col = 0; col < columns; ++col) places.insert(staged::offset(row, col));
  CHECK(places.size() == std::size_t{128} * columns);
  CHECK(*places.rbegin() < 128 * columns * static_cast<int>(sizeof(Sum)));
  // As many lanes as fill the banks at a time store pairs of two columns.
  for (int i = 0; i < columns / 2; i += 2)
    for (int begin = 0; begin < 128; begin += 32 / words) {
      std::set<int> banks;
      for (int thread = begin; thread < begin + 32 / words; ++thread) {
        auto const at = sm90::sum_element(thread, i);
        banks.insert(staged::offset(at.row, at.col) / (4 * words) % (32 / words));
      }
      REQUIRE(banks.size() == std::size_t{32} / words);
    }
}

TEST_CASE("pairs of columns reach what exists of a matrix, by one access or element by element") {
  constexpr int group = 2, first_row = 3;
  for (bool const add : {false, true})
    for (int const rows : {128, 65, 1})
      for (int64 const n : {256, 300, 261, 512}) {
        int64 const stride = n + n % 2, group_stride = (first_row + 128) * stride;
        std::vector<float> const before(static_cast<std::size_t>((group + 1) * group_stride), 0.5f);
        for (int const column_tile : {0, 1}) {
          device_values<float> to(before);
          testing::launch_block(&pairs_of_tile, 256, 0, sm90::tile_task{group, first_row, rows, column_tile}, n,
                                gpu::store_matrix<float>{to.data(), group_stride, stride, add});
          auto const got = to.host();
          bool right = true;
          for (int64 i = 0; i < static_cast<int64>(got.size()); ++i) {
            int64 const row = (i - group * group_stride) / stride - first_row;
            int64 const col = i % stride - column_tile * 256;
            bool const inside =
                i >= group * group_stride && row >= 0 && row < rows && col >= 0 && col < 256 && i % stride < n;
            float const sum = static_cast<float>(row * 1000 + col);
            right = right && got[static_cast<std::size_t>(i)] == (inside ? (add ? 0.5f + sum : sum) : 0.5f);
          }
          INFO(rows, " rows, ", n, " columns, tile ", column_tile, add ? ", added" : "");
          CHECK(right);
        }
      }
}
