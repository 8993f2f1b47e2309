// SPDX-License-Identifier: Apache-2.0
// A bias on the scores that the selection sees, and that nothing else does: balance without a loss (Wang et al., 2024;
// DeepSeek-V3). Weights come from the scores as they were.
//
//   S = select(s + b)                      b [E] in float, no gradient
//   b_e ← b_e + rate · sign(c̄ − c_e)       once a global batch, c_e the slots that asked for expert e and c̄ their mean
//   b_e ← b_e − mean of the changes        if `centred`
//
// A layer keeps b as "router.selection_bias" among its weights, starting at 0, and gives it to its router; a router alone is
// given `values`, in memory of the back end. layer.update_selection_bias(weights, counts) takes the step, with the counts of
// report.counts(): integers, of tokens that are not masked, merged over micro-batches and ranks before. sign(0) is 0.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// A bias may also be a user's own: a struct with the pointer `values` and the member forward(row).
template <class B>
concept bias_rule = requires(B rule, B const constant, span_row<float> row) {
  { rule.values } -> std::same_as<float const*&>;
  constant.forward(row);
};

struct selection_bias {
  static constexpr std::string_view name = "selection_bias";
  float rate = 1e-3f;
  bool centred = false;
  float const* values = nullptr;  // null is 0

  template <score_row Row> MOIETY_HD void forward(Row& row) const {
    using S = typename Row::value_type;
    if (values != nullptr) row.map_indexed([&](S s, int e) { return s + static_cast<S>(values[e]); });
  }

  /// Throws data_error unless there is one count for each expert.
  void update(std::span<std::int64_t const> counts, std::span<float> bias) const {
    detail::require<data_error>(counts.size() == bias.size(), "a selection bias of ", bias.size(),
                                " experts was given the counts of ", counts.size(), '.');
    std::int64_t const all = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    auto const experts = static_cast<std::int64_t>(counts.size());
    auto const sign = [&](std::size_t e) { return (all > experts * counts[e]) - (all < experts * counts[e]); };
    std::int64_t sum = 0;
    for (std::size_t e = 0; e < bias.size(); ++e) sum += sign(e);
    float const mean = centred ? static_cast<float>(sum) / static_cast<float>(experts) : 0.0f;
    for (std::size_t e = 0; e < bias.size(); ++e) bias[e] += rate * (static_cast<float>(sign(e)) - mean);
  }

  template <class F> void for_each_value(F const& f) const { f("rate", rate), f("centred", centred); }

  /// Throws config_error for a rate that can never work.
  void check() const {
    detail::require<config_error>(std::isfinite(rate) && rate >= 0,
                                  "the rate of mo::selection_bias must be finite and not negative, but is ", rate, '.');
  }
};
static_assert(bias_rule<selection_bias>);

}  // namespace moiety
