// SPDX-License-Identifier: Apache-2.0
// The router z-loss of ST-MoE (eq. 5), which keeps logits small:
//
//   Z = 1/T · Σ_t lse_t²,  lse_t = log Σ_e exp z_te        ∂Z/∂z_te = 2/T · lse_t · softmax(z_t)_e
//
// over a unit of T tokens, whatever the score rule. Z of no token is 0. A token whose lse² is 2⁶² or more makes Z NaN.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

struct router_z {
  static constexpr std::string_view name = "router_z";
  static constexpr bool needs_probabilities = false;
  using unit = over::micro_batch;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    return of.tokens() == 0 ? 0 : of.unit->lse_squared.value() / static_cast<double>(of.tokens());
  }

  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const& of, typename Row::value_type factor, Row const& logits, Row&,
                                Row& dlogits) const {
    using S = typename Row::value_type;
    S const peak = logits.max();
    S const lse = peak + moiety::log(logits.sum([&](S z) { return moiety::exp(z - peak); }));
    S const scale = static_cast<S>(2 * static_cast<double>(factor) / static_cast<double>(of.tokens())) * lse;
    dlogits.map(logits, [&](S old, S z) { return fma(scale, moiety::exp(z - lse), old); });
  }

  /// Adds ∂Z/∂logits to dlogits [T × E]; the coefficient does not enter.
  template <class Context, class Router>
  void gradient(Context& ctx, statistics_view const& of, matrix_view<typename Context::sum const> logits,
                Router const& router, matrix_view<typename Context::sum> dlogits) const {
    detail::add_loss_gradient(ctx, *this, of, logits, router, dlogits);
  }
};
static_assert(loss<router_z>);

}  // namespace moiety
