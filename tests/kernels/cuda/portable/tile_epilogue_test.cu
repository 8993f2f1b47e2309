// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/tile_epilogue.cuh>

#include <kernels/cuda/portable/gemm_cases.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

using namespace gemm_cases;

namespace tile_epilogue_cases {

/// Each thread returns the chain of its columns times scale; takes the sums of rows.
template <class S> struct weigh {
  static constexpr bool sums_rows = true;
  S const* scale;
  S* parts;
  int* calls;
  int64 tiles;

  template <std::size_t N> __device__ S operator()(int64, int64, int64 col, int count, S const (&sums)[1][N]) const {
    S sum = 0;
    for (int c = 0; c < count; ++c) sum = mo::fma(sums[0][c], scale[col + c], sum);
    return sum;
  }
  __device__ void row_sum(int64 row, int64 tile, S sum) const {
    parts[row * tiles + tile] = sum;
    ++calls[row * tiles + tile];
  }
};

/// What row_sum is given, from the sums of one row.
template <class S> S folded(std::vector<S> const& sums, std::vector<S> const& scale, int64 row, int64 tile, int64 n) {
  S blocks[16] = {};
  for (int64 c = tile * 128; c < std::min(n, (tile + 1) * 128); ++c)
    blocks[c % 128 / 8] = mo::fma(at(sums, row * n + c), at(scale, c), blocks[c % 128 / 8]);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) blocks[i] = blocks[i] + blocks[i + half];
  return blocks[0];
}

}  // namespace tile_epilogue_cases

using namespace tile_epilogue_cases;

TEST_CASE_TEMPLATE("sums of rows have one order, whatever the tile", T, mo::bf16, mo::fp16, float, double) {
  INFO("seed ", seed);
  using S = mo::sum_t<T>;
  for (int64 const n : {8, 128, 129, 300}) {
    int64 const pad = (8 - n % 8) % 8;
    setting const s{.rows = {17, 0, 40, 3, 70}, .n = n, .k = 80 - pad, .pad = pad};  // wide rows, whose last chunk ends
    nn_case<S, T, T, 1> const nn(s);
    nn.check();
    auto const sums = nn.run();
    int64 const tiles = (n + cuda_column_tile - 1) / cuda_column_tile;
    std::vector<S> scale(static_cast<std::size_t>(n)), expected;
    for (S& value : scale) value = random_value<S>();
    for (int64 r = 0; r < s.total(); ++r)
      for (int64 tile = 0; tile < tiles; ++tile) expected.push_back(folded(sums, scale, r, tile, n));
    device_values<S> const scale_there(scale);
    for (int64 const more : {0, 1000}) {
      device_values<S> parts(s.total() * tiles);
      device_values<int> calls(std::vector<int>(static_cast<std::size_t>(s.total() * tiles), 0));
      grouped_gemm_nn<S>(engine(), s.groups(), nn.offsets.get(), s.total() + more, std::array{nn.a[0].view()},
                         std::array{nn.w[0].view()}, s.n, s.k,
                         weigh<S>{scale_there.data(), parts.data(), calls.data(), tiles});
      CHECK(same_bits(parts.host(), expected));
      CHECK(calls.host() == std::vector<int>(static_cast<std::size_t>(s.total() * tiles), 1));
    }
  }
}

TEST_CASE("matrices stand side by side in equal parts of a tile") {
  CHECK(gpu::matrix_columns(128, 1) == 128);
  CHECK(gpu::matrix_columns(128, 2) == 64);
  CHECK(gpu::matrix_columns(128, 3) == 32);
  CHECK(gpu::matrix_columns(128, 4) == 32);
  CHECK(gpu::sums_rows<weigh<float>>);
  CHECK_FALSE(gpu::sums_rows<gpu::store_matrix<float>>);
}
