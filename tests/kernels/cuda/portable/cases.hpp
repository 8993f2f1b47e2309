// SPDX-License-Identifier: Apache-2.0
// A permutation that some routing could have: random experts, some tokens dispatched nowhere.
#pragma once

#include <moiety/batch/permutation.hpp>
#include <moiety/core/random.hpp>

#include "device_memory.hpp"

#include <cstdint>
#include <vector>

namespace testing {

struct permutation_case {
  std::int64_t tokens, experts, slots, rows = 0;
  std::vector<std::int64_t> starts;
  std::vector<std::int32_t> source_tokens, positions;

  permutation_case(std::int64_t t, std::int64_t e, std::int64_t k, moiety::seed key)
      : tokens(t),
        experts(e),
        slots(k),
        starts(static_cast<std::size_t>(e + 1)),
        source_tokens(static_cast<std::size_t>(t * k), -7),
        positions(static_cast<std::size_t>(t * k), -1) {
    auto const word = [&](std::int64_t i) { return moiety::random_word(key, 1, static_cast<std::uint64_t>(i)); };
    auto const at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    for (std::int64_t expert = 0; expert < e; ++expert) {
      starts[at(expert)] = rows;
      for (std::int64_t token = 0; token < t; ++token) {
        if (word(token) % 7 == 0) continue;
        std::int64_t const slot = (expert - word(token) / 7 % e + e) % e;  // k neighbours, from a random one on
        if (slot >= k) continue;
        positions[at(token * k + slot)] = static_cast<std::int32_t>(rows);
        source_tokens[at(rows++)] = static_cast<std::int32_t>(token);
      }
    }
    starts[at(e)] = rows;
  }

  moiety::permutation_view host() {
    return {tokens, experts, slots, starts.data(), source_tokens.data(), positions.data()};
  }
};

/// The same in device memory.
struct device_permutation {
  device_values<std::int64_t> starts;
  device_values<std::int32_t> source_tokens, positions;
  moiety::permutation_view view;

  explicit device_permutation(permutation_case const& of)
      : starts(of.starts), source_tokens(of.source_tokens), positions(of.positions), view{of.tokens,
                                                                                          of.experts,
                                                                                          of.slots,
                                                                                          starts.data(),
                                                                                          source_tokens.data(),
                                                                                          positions.data()} {}
};

}  // namespace testing
