// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/find_tile.cuh>

#include <cuda_runtime.h>

#include <doctest/doctest.h>
#include <device_memory.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

using namespace moiety::kernels::gpu;
using int64 = std::int64_t;
using testing::device_values;

namespace {

__global__ void find_tiles(ragged_rows rows, int height, int64 column_tiles, tile* found) {
  tile const mine = warp_find_tile(rows, blockIdx.x, height, column_tiles);
  found[blockIdx.x * blockDim.x + threadIdx.x] = mine;
}

/// Every lane of both warps finds what the walk over the groups finds.
void check(std::vector<int64> const& offsets, int height, int64 column_tiles, bool null = false) {
  auto const groups = static_cast<int64>(offsets.size()) - 1;
  ragged_rows const here{null ? nullptr : offsets.data(), groups, offsets.back()};
  auto const blocks = static_cast<unsigned>(row_tiles_bound(offsets.back(), groups, height) * column_tiles + 2);
  device_values<int64> const there(offsets);
  device_values<tile> found(int64{blocks} * 64);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks), config.blockDim = dim3(64);
  testing::succeed(cudaLaunchKernelEx(&config, &find_tiles,
                                      ragged_rows{null ? nullptr : there.data(), groups, offsets.back()}, height,
                                      column_tiles, found.data()));
  auto const got = found.host();
  bool all = true;
  for (std::size_t i = 0; i < got.size(); ++i)
    all = all && got[i] == find_tile(here, static_cast<int64>(i / 64), height, column_tiles);
  CHECK(all);
}

}  // namespace

TEST_CASE("a warp finds the tile that the walk finds") {
  unsigned const seed = std::random_device{}();
  INFO("seed ", seed);
  std::mt19937 random(seed);
  for (std::size_t groups : {1u, 2u, 31u, 32u, 33u, 64u, 100u, 300u})
    for (unsigned most : {1u, 3u, 40u}) {
      std::vector<int64> offsets{0};
      while (offsets.size() <= groups)
        offsets.push_back(offsets.back() + (random() % 3 == 0 ? 0 : static_cast<int64>(random() % (most + 1))));
      check(offsets, 8, static_cast<int64>(1 + random() % 3));
    }
}

TEST_CASE("one group has all rows, or none has any, or there are no offsets") {
  std::vector<int64> first(41, 200), last(41, 0), none(41, 0);
  first[0] = 0;
  last[40] = 200;
  check(first, 32, 2);
  check(last, 32, 2);
  check(none, 32, 2);
  check({0, 129}, 32, 3, true);
  check({0, 0}, 32, 3, true);
}
