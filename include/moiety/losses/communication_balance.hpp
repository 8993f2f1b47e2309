// SPDX-License-Identifier: Apache-2.0
// The communication balance loss of DeepSeek-V2 (arXiv 2405.04434, section 2.2.3), which evens out what devices receive:
//
//   B = Σ_i f''_i P''_i = D / (M T²) · Σ_i r_i Σ_t Σ_{e∈i} p_te        ∂B/∂p_te = D / (M T²) · r_i(e)
//
// over a unit of T tokens, for D equal contiguous groups of experts, as they lie on D devices: r_i is the number of tokens
// that device i is sent, each counted once however many of its slots go there (no gradient), and M the number of devices
// that a token may be sent to: f''_i = D / (M T) · r_i, and P''_i is the sum of the group's mean probabilities. B is 1 where
// every token is sent to M devices and the load is even, and at most D / M. B of no token is 0.
//
// Groups that do not divide the experts do not compile in a spec; value() throws data_error, also for statistics whose
// tokens were not counted by these groups. A spec counts them for one number of groups.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <std::int64_t Groups, std::int64_t Reached, loss_unit Over = over::micro_batch> struct communication_balance {
  static_assert(Reached >= 1 && Reached <= Groups,
                "mo::communication_balance<Groups, Reached> needs 1 <= Reached <= Groups.");
  static constexpr std::string_view name = "communication_balance";
  static constexpr bool needs_probabilities = true;
  static constexpr std::int64_t device_groups = Groups;
  static constexpr bool counts_groups = true;
  using unit = Over;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    detail::check_groups(name, Groups, of);
    detail::require<data_error>(of.unit->groups == Groups, name, " of ", Groups,
                                " groups was given statistics that count the tokens of ", of.unit->groups, '.');
    if (of.tokens() == 0) return 0;
    double sum = 0;
    for (std::size_t g = 0; g < Groups; ++g)
      sum = fma(static_cast<double>(reached(of, g)), detail::probability_of_group(of, g, Groups).value(), sum);
    return scale(of) * sum;
  }

  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const& of, typename Row::value_type factor, Row const&,
                                Row& dprobabilities, Row&) const {
    using S = typename Row::value_type;
    double const times = static_cast<double>(factor) * scale(of);
    std::size_t const size = of.experts.size() / Groups;
    dprobabilities.map_indexed([&](S old, int e) {
      auto const tokens = static_cast<double>(reached(of, static_cast<std::size_t>(e) / size));
      return static_cast<S>(fma(times, tokens, static_cast<double>(old)));
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
    auto const tokens = static_cast<double>(of.tokens());
    return static_cast<double>(Groups) / (static_cast<double>(Reached) * tokens * tokens);
  }
  /// Tokens that a group is sent.
  MOIETY_HD static std::int64_t reached(statistics_view const& of, std::size_t group) {
    return of.experts[group * (of.experts.size() / Groups)].reached;
  }
};
static_assert(loss<communication_balance<1, 1>>);

}  // namespace moiety
