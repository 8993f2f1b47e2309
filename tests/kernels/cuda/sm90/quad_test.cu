// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/sm90/quad.cuh>

#include <cuda_runtime.h>

#include <doctest/doctest.h>
#include <device_memory.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace quad_cases {

using namespace moiety::kernels;
using int64 = std::int64_t;
using testing::device_values;

/// What stands in row r and column c of the 64 x (M * Width) sums of a warpgroup.
__device__ float value(int row, int col) { return static_cast<float>(row * 1000 + col); }

/// Notes what it is given: sums and calls [row][m * n + column].
template <int M> struct note {
  float* sums;
  int* calls;
  int64 n;

  template <int N>
  __device__ void operator()(int64 group, int64 row, int64 col, int count, float const (&from)[M][N]) const {
    for (int m = 0; m < M; ++m)
      for (int c = 0; c < count; ++c) {
        int64 const place = (row * M + m) * n + col + c;
        sums[place] = from[m][c] + static_cast<float>(group);
        ++calls[place];
      }
  }
};

template <int M, int Width, class Epilogue>
__global__ void hand_over_tile(sm90::tile_task of, int64 n, Epilogue epilogue, float const* given) {
  constexpr int columns = M * Width;
  int const thread = static_cast<int>(threadIdx.x) % 128, first = static_cast<int>(threadIdx.x) / 128 * 64;
  float sums[columns / 2];
  for (int i = 0; i < columns / 2; ++i) {
    auto const at = sm90::sum_element(thread, i);
    sums[i] = given == nullptr ? value(first + at.row, at.col) : given[(first + at.row) * columns + at.col];
  }
  sm90::hand_over_quads<M, Width>(sums, first, of, n, epilogue);
}

template <int M, int Width, class Epilogue>
void launch(sm90::tile_task const& of, int64 n, Epilogue const& epilogue, float const* given = nullptr) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(256);
  testing::succeed(cudaLaunchKernelEx(&config, &hand_over_tile<M, Width, Epilogue>, sm90::tile_task(of), int64(n),
                                      Epilogue(epilogue), static_cast<float const*>(given)));
}

/// Rows and columns beyond the tile's are not handed over; all others are once, with what stands there.
template <int M, int Width> void check(int rows, int column_tile, int64 n) {
  constexpr int first_row = 5, group = 3;
  int64 const space = (first_row + 128) * M * n;
  device_values<float> sums(space);
  device_values<int> calls(std::vector<int>(static_cast<std::size_t>(space), 0));
  launch<M, Width>({group, first_row, rows, column_tile}, n, note<M>{sums.data(), calls.data(), n});
  auto const got = sums.host();
  auto const counts = calls.host();
  bool right = true;
  for (int64 r = 0; r < first_row + 128; ++r)
    for (int64 m = 0; m < M; ++m)
      for (int64 c = 0; c < n; ++c) {
        auto const place = static_cast<std::size_t>((r * M + m) * n + c);
        int64 const row = r - first_row, col = c - column_tile * Width;
        bool const exists = row >= 0 && row < rows && col >= 0 && col < Width;
        right = right && counts[place] == (exists ? 1 : 0);
        if (exists) right = right && got[place] == static_cast<float>(row * 1000 + m * Width + col + group);
      }
  CHECK(right);
}

/// Returns the sum of its columns; takes the sums of rows.
struct add_columns {
  static constexpr bool sums_rows = true;
  float* parts;
  int* calls;
  int64 tiles;

  template <int N> __device__ float operator()(int64, int64, int64, int count, float const (&from)[1][N]) const {
    float sum = 0;
    for (int c = 0; c < count; ++c) sum += from[0][c];
    return sum;
  }
  __device__ void row_sum(int64 row, int64 tile, float sum) const {
    parts[row * tiles + tile] = sum;
    ++calls[row * tiles + tile];
  }
};

/// The promised order, from the sums of the 16 blocks.
float folded(float const* row, int64 count) {
  float blocks[16] = {};
  for (int64 c = 0; c < count; ++c) blocks[c / 8] += row[c];
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) blocks[i] = blocks[i] + blocks[i + half];
  return blocks[0];
}

void check_row_sums(int rows, int column_tile, int64 n, std::mt19937& random) {
  std::vector<float> given(128 * 128);
  for (float& one : given) one = static_cast<float>(random() >> 8) * 0x1p-20f;
  int64 const tiles = (n + 127) / 128;
  device_values<float> const there(given);
  device_values<float> parts(128 * tiles);
  device_values<int> calls(std::vector<int>(static_cast<std::size_t>(128 * tiles), 0));
  launch<1, 128>({0, 0, rows, column_tile}, n, add_columns{parts.data(), calls.data(), tiles}, there.data());
  auto const got = parts.host();
  auto const counts = calls.host();
  bool right = true;
  for (int64 r = 0; r < 128; ++r)
    for (int64 tile = 0; tile < tiles; ++tile) {
      auto const place = static_cast<std::size_t>(r * tiles + tile);
      bool const exists = r < rows && tile == column_tile;
      right = right && counts[place] == (exists ? 1 : 0);
      if (exists) right = right && got[place] == folded(given.data() + r * 128, std::min<int64>(n - tile * 128, 128));
    }
  CHECK(right);
}

}  // namespace quad_cases

using namespace quad_cases;

TEST_CASE("each sum of a tile is handed over once, at its place") {
  check<1, 256>(128, 0, 256);
  check<1, 256>(65, 1, 264);
  check<1, 128>(1, 2, 300);
  check<2, 128>(128, 0, 128);
  check<2, 128>(127, 1, 203);
  check<2, 64>(64, 0, 64);
  check<3, 64>(17, 1, 77);
  check<4, 64>(128, 2, 136);
  check<3, 32>(128, 0, 32);
  check<4, 32>(90, 1, 40);
}

TEST_CASE("rows are summed in the promised order") {
  unsigned const seed = std::random_device{}();
  INFO("seed ", seed);
  std::mt19937 random(seed);
  check_row_sums(128, 0, 128, random);
  check_row_sums(3, 1, 251, random);
  check_row_sums(127, 2, 390, random);
  check_row_sums(70, 0, 8, random);
}
