// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/row_weights.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>

namespace mo = moiety;

namespace {

// Two tokens of two slots; the second token goes nowhere.
struct problem {
  mo::host_engine engine{mo::host{.threads = 2}};
  std::array<std::int64_t, 4> starts{0, 1, 1, 2};
  std::array<std::int32_t, 4> source_tokens{0, 0, 0, 0};
  std::array<std::int32_t, 4> positions{1, 0, -1, -1};
  mo::permutation_view order{2, 3, 2, starts.data(), source_tokens.data(), positions.data()};
};

}  // namespace

TEST_CASE_FIXTURE(problem, "weights go to the rows of their slots, and nowhere else") {
  std::array<float, 4> const weights{0.25f, 0.75f, 5, 6};
  std::array<float, 3> rows{-1, -1, -1};
  mo::kernels::spread_weights<float>(engine, order, weights.data(), rows.data());
  CHECK(rows == std::array<float, 3>{0.75f, 0.25f, -1});
}

TEST_CASE_FIXTURE(problem, "the parts of a row are added in ascending order; a slot without a row has no gradient") {
  // 1 + 2^-24 rounds to 1, so the order of the sum shows.
  std::array<float, 6> const parts{1, 0x1p-24f, 0x1p-24f, 0x1p-24f, 0x1p-24f, 1};
  std::array<float, 4> gradients{9, 9, 9, 9};
  mo::kernels::gather_weight_gradients<float>(engine, order, parts.data(), 3, gradients.data());
  CHECK(gradients == std::array<float, 4>{0x1p-24f + 0x1p-24f + 1.0f, 1, 0, 0});
}
