// SPDX-License-Identifier: Apache-2.0
// Rows of scores for tests: drawn, with ties on demand; and a selection run on one.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/router/selection.hpp>

#include <cstdint>
#include <utility>
#include <vector>

namespace rows {

/// Values of a standard normal; every third row takes its values from {−1, 0, 1} if `ties`.
template <class S> moiety::matrix<S> drawn(std::int64_t count, std::int64_t size, int key, bool ties = false) {
  moiety::matrix<S> all(count, size);
  for (std::int64_t i = 0; i < count * size; ++i) {
    auto const v = static_cast<S>(moiety::normal(moiety::seed{key}, 0, static_cast<std::uint64_t>(i)));
    all.data()[i] = !ties || i / size % 3 != 0 ? v : v > S(0.5) ? S{1} : v < S(-0.5) ? S{-1} : S{0};
  }
  return all;
}

template <class S> std::vector<S> row(moiety::matrix<S> const& of, std::int64_t r) {
  return {of.row(r), of.row(r) + of.cols()};
}

/// The pairs (slot, expert) that a selection of single tokens calls out.
template <class Selection>
std::vector<std::pair<int, int>> called(Selection const& selection, std::vector<float> scores,
                                        moiety::token_view const& token = {}) {
  std::vector<std::pair<int, int>> calls;
  moiety::span_row<float> row(scores.data(), static_cast<std::int64_t>(scores.size()));
  auto const chosen = [&](int slot, int expert) { calls.emplace_back(slot, expert); };
  if constexpr (moiety::selects_by_token<Selection>)
    selection.forward(row, token, chosen);
  else
    selection.forward(row, chosen);
  return calls;
}

}  // namespace rows
