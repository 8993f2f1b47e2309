// SPDX-License-Identifier: Apache-2.0
// Loads with a name, for benchmarks and tests: experts are chosen whatever the scores are; weights, and the gradient that
// reaches the router through them, are those of the scores. t is the token's place in the global batch.
//
//   imbalance::round_robin   experts (t K + j) mod E: loads differ by one at most
//   imbalance::uniform       K distinct experts, all sets alike
//   imbalance::zipf          K distinct experts, drawn with probabilities in proportion to 1 / (e + 1)
//   imbalance::one_hot       experts 0 … K − 1, for every token
//
// Draws are a function of (key, step, t). An imbalance is a struct of the member forward<K>(row, token, key, chosen).
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/random.hpp>
#include <moiety/router/selection.hpp>

#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace imbalance {

namespace detail {
inline constexpr std::uint64_t forced_stream = stream_of("router.forced");

/// The 32 random bits of one expert for one token.
MOIETY_HD inline std::uint32_t draw(seed key, token_view const& token, int experts, int expert) {
  return random_word(key, forced_stream + static_cast<std::uint64_t>(token.moment()),
                     static_cast<std::uint64_t>(token.logical * experts + expert));
}
}  // namespace detail

struct round_robin {
  static constexpr std::string_view name = "round_robin";
  template <int K, score_row Row, class Chosen>
  MOIETY_HD static void forward(Row& row, token_view const& token, seed, Chosen const& chosen) {
    for (int slot = 0; slot < K; ++slot) chosen(slot, static_cast<int>((token.logical * K + slot) % row.size()));
  }
};

struct uniform {
  static constexpr std::string_view name = "uniform";
  template <int K, score_row Row, class Chosen>
  MOIETY_HD static void forward(Row& row, token_view const& token, seed key, Chosen const& chosen) {
    using S = typename Row::value_type;
    row.map_indexed([&](S, int e) { return static_cast<S>(detail::draw(key, token, row.size(), e)); });
    row.template largest<K>(chosen);
  }
};

/// The first to arrive of E exponential clocks of the rates 1 / (e + 1), then the next, and so on.
struct zipf {
  static constexpr std::string_view name = "zipf";
  template <int K, score_row Row, class Chosen>
  MOIETY_HD static void forward(Row& row, token_view const& token, seed key, Chosen const& chosen) {
    using S = typename Row::value_type;
    row.map_indexed([&](S, int e) {
      double const u = (static_cast<double>(detail::draw(key, token, row.size(), e)) + 0.5) * 0x1p-32;
      return static_cast<S>(moiety::log(u) * (e + 1));
    });
    row.template largest<K>(chosen);
  }
};

struct one_hot {
  static constexpr std::string_view name = "one_hot";
  template <int K, class Chosen>
  MOIETY_HD static void forward(score_row auto&, token_view const&, seed, Chosen const& chosen) {
    for (int slot = 0; slot < K; ++slot) chosen(slot, slot);
  }
};

}  // namespace imbalance

template <int K, class Imbalance = imbalance::uniform> struct forced {
  static constexpr std::string_view name = "forced";
  static constexpr int count = K;
  static constexpr bool writes_scores = true;
  seed key{0};

  template <class Chosen>
  MOIETY_HD void forward(score_row auto& row, token_view const& token, Chosen const& chosen) const {
    Imbalance::template forward<K>(row, token, key, chosen);
  }

  template <class F> void for_each_value(F const& f) const { f("key", key.value); }
};
static_assert(selection<forced<2>> && selection<forced<2, imbalance::zipf>>);

}  // namespace moiety
