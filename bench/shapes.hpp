// SPDX-License-Identifier: Apache-2.0
// The grid of shapes that the benchmarks cover.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace bench {

/// Expert matrices, and as many experts as keep the weights of a call out of the caches.
struct expert_shape {
  char const* name;
  std::int64_t hidden, ffn, experts;

  /// Calls with many rows are long, and bound by arithmetic: they take fewer experts.
  std::int64_t experts_for(std::int64_t rows) const {
    return rows < 1024 ? experts : std::max(experts / 4, INT64_C(2));
  }
};
inline constexpr std::array expert_shapes{
    expert_shape{"2048x768", 2048, 768, 16},   // Qwen3-30B-A3B
    expert_shape{"4096x1536", 4096, 1536, 6},  // Qwen3-235B-A22B
};
inline constexpr std::array<std::int64_t, 6> rows_per_expert{1, 4, 16, 64, 256, 1024};

/// Tokens of routing, permuting and combining.
inline constexpr std::array<std::int64_t, 2> token_counts{512, 4096};

}  // namespace bench
