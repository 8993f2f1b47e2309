// SPDX-License-Identifier: Apache-2.0
// The load-balance loss of the Switch Transformer (eq. 4 to 6), for any k:
//
//   B = E / (k T²) · Σ_e c_e Σ_t p_te        ∂B/∂p_te = E / (k T²) · c_e
//
// over a unit of T tokens: c_e slots routed to expert e (no gradient), p_te the probabilities: softmax scores, or the
// scores of other rules normalised to one per token. B is 1 at perfect balance, and at most E / k. B of no token is 0.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <loss_unit Over = over::micro_batch> struct load_balance {
  static constexpr std::string_view name = "load_balance";
  using unit = Over;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    if (of.tokens() == 0) return 0;
    double sum = 0;
    for (expert_statistics const& e : of.experts) sum = fma(static_cast<double>(e.count), e.probability.value(), sum);
    return normaliser(of) * sum;
  }

  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const& of, typename Row::value_type factor, Row const&,
                                Row& dprobabilities, Row&) const {
    using S = typename Row::value_type;
    double const scale = static_cast<double>(factor) * normaliser(of);
    dprobabilities.map_indexed([&](S old, int e) {
      double const count = static_cast<double>(of.experts[static_cast<std::size_t>(e)].count);
      return static_cast<S>(fma(scale, count, static_cast<double>(old)));
    });
  }

  /// Adds ∂B/∂logits to dlogits [T × E]; the coefficient does not enter.
  template <class Context, class Router>
  void gradient(Context& ctx, statistics_view const& of, matrix_view<typename Context::sum const> logits,
                Router const& router, matrix_view<typename Context::sum> dlogits) const {
    detail::add_loss_gradient(ctx, *this, of, logits, router, dlogits);
  }

 private:
  MOIETY_HD static double normaliser(statistics_view const& of) {
    auto const tokens = static_cast<double>(of.tokens());
    return static_cast<double>(of.experts.size()) / (static_cast<double>(of.slots()) * tokens * tokens);
  }
};
static_assert(loss<load_balance<>>);

}  // namespace moiety
