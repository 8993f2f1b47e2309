// SPDX-License-Identifier: Apache-2.0
// Quantile balancing: a selection bias that would have balanced the tokens it has seen, in one step and without a rate.
//
//   S = select(s + b)
//   α_t = the (k + 1)-th largest s_te + b_e of token t        d_te = s_te − α_t
//   β_e = the value that r = n k / E of the n numbers d_te exceed, so that expert e would get r tokens; where r is no integer,
//         between the two that ⌊r⌋ and ⌊r⌋ + 1 of them exceed, in proportion
//   b_e ← momentum · b_e − (1 − momentum) · β_e               β the mean over the tapes of one global batch
//
// over the n tokens that take part in losses. layer.update_selection_bias(weights, tape, ...) takes the step. With k = E
// nothing is selected, and nothing changes.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/router/selection_bias.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI {

struct quantile_bias {
  static constexpr std::string_view name = "quantile_bias";
  float momentum = 0;
  float const* values = nullptr;  // null is 0

  template <score_row Row> MOIETY_HD void forward(Row& row) const { selection_bias{.values = values}.forward(row); }

  /// −β of scores [n × E], each token with k slots, under the bias b [E].
  template <class S>
  static std::vector<double> balancing(matrix_view<S const> scores, std::int64_t k, std::span<float const> bias) {
    std::int64_t const n = scores.rows(), experts = scores.cols();
    std::vector<double> result(bias.begin(), bias.end());
    if (n == 0 || k >= experts) return result;
    std::vector<double> threshold(static_cast<std::size_t>(n)), row(bias.size()), column(threshold.size());
    auto const score = [&](std::int64_t t, std::size_t e) { return static_cast<double>(scores.row(t)[e]); };
    for (std::int64_t t = 0; t < n; ++t) {
      for (std::size_t e = 0; e < row.size(); ++e) row[e] = score(t, e) + static_cast<double>(bias[e]);
      std::nth_element(row.begin(), row.begin() + k, row.end(), std::greater<>{});
      threshold[static_cast<std::size_t>(t)] = row[static_cast<std::size_t>(k)];
    }
    std::int64_t const whole = n * k / experts;
    double const part = static_cast<double>(n * k % experts) / static_cast<double>(experts);
    for (std::size_t e = 0; e < result.size(); ++e) {
      for (std::int64_t t = 0; t < n; ++t)
        column[static_cast<std::size_t>(t)] = score(t, e) - threshold[static_cast<std::size_t>(t)];
      auto const at = column.begin() + whole;  // whole < n, as k < E
      std::nth_element(column.begin(), at, column.end(), std::greater<>{});
      double const next = at + 1 == column.end() ? *at : *std::max_element(at + 1, column.end());
      result[e] = -((1 - part) * *at + part * next);
    }
    return result;
  }

  /// The step, with what balancing() gave for each tape.
  void update(std::span<std::vector<double> const> balanced, std::span<float> bias) const {
    for (std::size_t e = 0; e < bias.size() && !balanced.empty(); ++e) {
      double sum = 0;
      for (std::vector<double> const& one : balanced) sum += one[e];
      double const mean = sum / static_cast<double>(balanced.size()), keep = static_cast<double>(momentum);
      bias[e] = static_cast<float>(keep * static_cast<double>(bias[e]) + (1 - keep) * mean);
    }
  }

  template <class F> void for_each_value(F const& f) const { f("momentum", momentum); }

  /// Throws config_error for a momentum that can never work.
  void check() const {
    detail::require<config_error>(momentum >= 0 && momentum < 1,
                                  "the momentum of mo::quantile_bias must be at least 0 and below 1, but is ", momentum,
                                  '.');
  }
};
static_assert(bias_rule<quantile_bias>);

}  // namespace moiety
