// SPDX-License-Identifier: Apache-2.0
// The load loss of noisy top-k gating (Shazeer et al., arXiv 1701.06538, eq. 8 to 11): the squared coefficient of variation
// of the load that is expected under the noise of the logits, z̃ = z + ε σ,
//
//   V = (s/μ)²,  L_e = Σ_t Φ((z_te − ψ_te) / σ_te),  μ = 1/E · Σ_e L_e,  s² = 1/E · Σ_e (L_e − μ)²
//   ∂V/∂L_e = 2 / (E μ²) · (L_e − μ − μ V)
//
// over a unit of tokens; ψ_te is the k-th largest of the other experts' z̃_t. The gradient reaches z and σ, and with σ the
// noise's matrix, in L_e itself and in ψ, which is another expert's z̃: see kernels/expected_load_row.hpp. s² is the variance
// of the population, as in importance. V is 0 and has no gradient at perfect balance, for no token, for one expert, and
// where all experts are chosen (k = E), whose load is T each. It is at most E − 1.
//
// Its router has mo::logit_noise or mo::constant_logit_noise, and selects by mo::top_k of scores that grow with the logits,
// without bias and groups: else it does not compile in a spec. Statistics whose expected loads were not summed throw
// data_error.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <cstddef>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <loss_unit Over = over::micro_batch> struct noisy_load {
  static constexpr std::string_view name = "noisy_load";
  static constexpr bool needs_probabilities = false;
  static constexpr bool needs_expected_loads = true;
  using unit = Over;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    detail::require<data_error>(of.expected_loads.size() == of.experts.size(), name,
                                " was given statistics whose expected loads were not summed.");
    double const mean = mean_of(of);
    return mean > 0 ? variance_of(of, mean) / (mean * mean) : 0;
  }

  /// dchances: of the chance P_te of each expert to be chosen, of which L_e is the sum.
  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const& of, typename Row::value_type factor, Row const&, Row& dchances,
                                Row&) const {
    using S = typename Row::value_type;
    double const mean = mean_of(of);
    if (!(mean > 0)) return;
    double const scale = 2 * static_cast<double>(factor) / (static_cast<double>(of.experts.size()) * mean * mean);
    double const shift = mean + variance_of(of, mean) / mean;  // μ + μ V
    dchances.map_indexed([&](S old, int e) {
      double const excess = of.expected_loads[static_cast<std::size_t>(e)].value() - shift;
      return static_cast<S>(fma(scale, excess, static_cast<double>(old)));
    });
  }

 private:
  MOIETY_HD static double mean_of(statistics_view const& of) {
    double sum = 0;
    for (exact_sum const& load : of.expected_loads) sum += load.value();
    return sum / static_cast<double>(of.experts.size());
  }
  MOIETY_HD static double variance_of(statistics_view const& of, double mean) {
    double squares = 0;
    for (exact_sum const& load : of.expected_loads) squares = fma(load.value() - mean, load.value() - mean, squares);
    return squares / static_cast<double>(of.experts.size());
  }
};
static_assert(loss<noisy_load<>>);

}  // namespace moiety
