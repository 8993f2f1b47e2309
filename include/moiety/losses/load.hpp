// SPDX-License-Identifier: Apache-2.0
// The squared coefficient of variation of the load, the slots c_e that each expert is given:
//
//   V = (σ/μ)²,  μ = Σ_e c_e / E,  σ² = 1/E · Σ_e (c_e − μ)²
//
// with the variance over the population of experts, as in importance. V is 0 at perfect balance, exactly, as it is computed
// from integers; E / k − 1 where all tokens take the same k experts; and 0 where nothing is routed.
//
// Counts have no gradient, so this loss is measured and never trained: a coefficient enters what is reported as weighted,
// and nothing else. The load that Shazeer et al. train (arXiv 1701.06538, eq. 8 to 11) is another function: the smooth
// probability that an expert is chosen under the noise of noisy top-k, see noisy_load.hpp.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <loss_unit Over = over::micro_batch> struct load {
  static constexpr std::string_view name = "load";
  static constexpr bool needs_probabilities = false;
  using unit = Over;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    auto const experts = static_cast<std::int64_t>(of.experts.size());
    std::int64_t slots = 0;
    for (expert_statistics const& e : of.experts) slots += e.count;
    if (slots == 0) return 0;
    double sum = 0;
    for (expert_statistics const& e : of.experts) {
      auto const excess = static_cast<double>(experts * e.count - slots);  // E (c_e − μ)
      sum = fma(excess, excess, sum);
    }
    return sum / (static_cast<double>(experts) * static_cast<double>(slots) * static_cast<double>(slots));
  }

  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const&, typename Row::value_type, Row const&, Row&, Row&) const {}
};
static_assert(loss<load<>>);

}  // namespace moiety
