// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/batch_selection.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

template <int = 0> __global__ void read_column(mo::batch_of_scores<float> const of, float* scores, bool* can_come) {
  mo::kernels::gpu::expert_column<float> const column{of, 1};
  for (std::int64_t t = 0; t < column.tokens(); ++t) scores[t] = column.score(t), can_come[t] = column.can_come(t);
}

TEST_CASE("a column has the scores of one expert, and says which of its tokens can come") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  std::vector<mo::token_state> state(5, mo::token_state::routed);
  state[1] = mo::token_state::sanitised, state[2] = mo::token_state::masked;
  testing::device_values<std::uint8_t> can_come(5);
  testing::device_values<float> column(5), scores(std::vector<float>{9, 1, 9, 2, 9, 3, 9, nan, 9, -infinity});
  testing::device_values<mo::token_state> states(state);
  mo::cuda_engine engine{mo::cuda{}};
  mo::batch_of_scores<float> const of{{scores.data(), 5, 2}, states.data(), {}, 2, nullptr, nullptr};
  engine.launch("read_column", read_column<>, {1, 1}, of, column.data(), reinterpret_cast<bool*>(can_come.data()));
  CHECK(column.host() == std::vector<float>{1, 2, 3, -infinity, -infinity});
  CHECK(can_come.host() == std::vector<std::uint8_t>{1, 1, 0, 0, 0});
}

TEST_CASE("flags of experts become ascending ids of tokens") {
  testing::device_values<std::uint8_t> chosen(std::vector<std::uint8_t>{0, 1, 0, /**/ 1, 1, 0, /**/ 0, 1, 0});
  testing::device_values<std::int32_t> ids(std::vector<std::int32_t>(9, -7));
  mo::cuda_engine engine{mo::cuda{}};
  mo::batch_of_scores<float> const of{{nullptr, 3, 3}, nullptr, {}, 3, ids.data(), nullptr};
  mo::kernels::gpu::list_tokens(engine, of, reinterpret_cast<bool const*>(chosen.data()));
  CHECK(ids.host() == std::vector<std::int32_t>{1, -7, -7, 0, 1, 2, -7, -7, -7});
}
