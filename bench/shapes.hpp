// SPDX-License-Identifier: Apache-2.0
// The grid of shapes that the benchmarks cover.
#pragma once

#include <array>
#include <cstdint>

namespace bench {

/// Expert matrices, and as many experts as keep the weights of a call out of the caches.
struct expert_shape {
  char const* name;
  std::int64_t hidden, ffn, experts;
};
inline constexpr std::array expert_shapes{
    expert_shape{"2048x768", 2048, 768, 16},   // Qwen3-30B-A3B
    expert_shape{"4096x1536", 4096, 1536, 6},  // Qwen3-235B-A22B
};
inline constexpr std::array<std::int64_t, 3> rows_per_expert{16, 64, 256};

/// Tokens of routing, permuting and combining.
inline constexpr std::array<std::int64_t, 2> token_counts{512, 4096};

}  // namespace bench
