// SPDX-License-Identifier: Apache-2.0
// The device-level balance loss of DeepSeek-V2 (arXiv 2405.04434, section 2.2.3): the balance loss of groups of experts,
//
//   B = Σ_i f'_i P'_i = D / (k T²) · Σ_i C_i Σ_t Σ_{e∈i} p_te        ∂B/∂p_te = D / (k T²) · C_i(e)
//
// over a unit of T tokens, for D equal contiguous groups of experts, as they lie on D devices: f'_i is the mean of
// f_e = E / (k T) · c_e over the experts of group i and P'_i the sum of their mean probabilities; C_i = Σ_{e∈i} c_e (no
// gradient). B is 1 at perfect balance, and at most the smaller of D and E / k. B of no token is 0. With D = E it is
// load_balance, with D = 1 it is 1.
//
// Groups that do not divide the experts do not compile in a spec; value() throws data_error.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <std::int64_t Groups, loss_unit Over = over::micro_batch> struct device_balance {
  static_assert(Groups >= 1, "mo::device_balance needs at least 1 group of experts.");
  static constexpr std::string_view name = "device_balance";
  static constexpr bool needs_probabilities = true;
  static constexpr std::int64_t device_groups = Groups;
  using unit = Over;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    detail::check_groups(name, Groups, of);
    if (of.tokens() == 0) return 0;
    double sum = 0;
    for (std::size_t g = 0; g < Groups; ++g)
      sum = fma(static_cast<double>(detail::slots_of_group(of, g, Groups)),
                detail::probability_of_group(of, g, Groups).value(), sum);
    return scale(of) * sum;
  }

  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const& of, typename Row::value_type factor, Row const&,
                                Row& dprobabilities, Row&) const {
    using S = typename Row::value_type;
    double const times = static_cast<double>(factor) * scale(of);
    std::size_t const size = of.experts.size() / Groups;
    dprobabilities.map_indexed([&](S old, int e) {
      auto const slots = detail::slots_of_group(of, static_cast<std::size_t>(e) / size, Groups);
      return static_cast<S>(fma(times, static_cast<double>(slots), static_cast<double>(old)));
    });
  }

  /// Adds ∂B/∂logits to dlogits [T × E]; the coefficient does not enter.
  template <class Context, class Router>
  void gradient(Context& ctx, statistics_view const& of, matrix_view<typename Context::sum const> logits,
                Router const& router, matrix_view<typename Context::sum> dlogits) const {
    detail::add_loss_gradient(ctx, *this, of, logits, router, dlogits);
  }

 private:
  MOIETY_HD static double scale(statistics_view const& of) {
    double const divisor = static_cast<double>(of.chosen()) * static_cast<double>(of.tokens());
    return divisor > 0 ? static_cast<double>(Groups) / divisor : 0;
  }
};
static_assert(loss<device_balance<1>>);

}  // namespace moiety
