// SPDX-License-Identifier: Apache-2.0
// The importance loss of Shazeer et al. (arXiv 1701.06538, eq. 6 and 7): the squared coefficient of variation of what the
// experts are given in probability,
//
//   V = (σ/μ)²,  I_e = Σ_t p_te,  μ = T / E,  σ² = 1/E · Σ_e (I_e − μ)²        ∂V/∂p_te = 2 E / T² · (I_e − μ)
//
// over a unit of T tokens, whose probabilities sum to one each, so their mean is known. σ² is the variance over the
// population of experts, 1/E, as in the authors' code (CVSquared in tensor2tensor); that of a sample, 1/(E − 1), is what
// some ports take. V is written without σ, so it has a gradient at perfect balance, where V is 0; it is at most E − 1. V of
// no token, and of one expert, is 0.
//
// p are the probabilities before selection, as V-MoE takes them (arXiv 2106.05974); the paper sums the weights after it.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <cstddef>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <loss_unit Over = over::micro_batch> struct importance {
  static constexpr std::string_view name = "importance";
  static constexpr bool needs_probabilities = true;
  using unit = Over;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    if (of.tokens() == 0) return 0;
    double sum = 0;
    for (expert_statistics const& e : of.experts) sum = fma(excess(of, e), excess(of, e), sum);
    return scale(of) * sum;
  }

  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const& of, typename Row::value_type factor, Row const&,
                                Row& dprobabilities, Row&) const {
    using S = typename Row::value_type;
    double const twice = 2 * static_cast<double>(factor) * scale(of);
    dprobabilities.map_indexed([&](S old, int e) {
      return static_cast<S>(fma(twice, excess(of, of.experts[static_cast<std::size_t>(e)]), static_cast<double>(old)));
    });
  }

  /// Adds ∂V/∂logits to dlogits [T × E]; the coefficient does not enter.
  template <class Context, class Router>
  void gradient(Context& ctx, statistics_view const& of, matrix_view<typename Context::sum const> logits,
                Router const& router, matrix_view<typename Context::sum> dlogits) const {
    detail::add_loss_gradient(ctx, *this, of, logits, router, dlogits);
  }

 private:
  MOIETY_HD static double experts(statistics_view const& of) { return static_cast<double>(of.experts.size()); }
  MOIETY_HD static double scale(statistics_view const& of) {
    auto const tokens = static_cast<double>(of.tokens());
    return experts(of) / (tokens * tokens);
  }
  /// I_e − μ
  MOIETY_HD static double excess(statistics_view const& of, expert_statistics const& e) {
    return e.probability.value() - static_cast<double>(of.tokens()) / experts(of);
  }
};
static_assert(loss<importance<>>);

}  // namespace moiety
