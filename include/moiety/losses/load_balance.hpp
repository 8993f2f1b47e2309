// SPDX-License-Identifier: Apache-2.0
// The load-balance loss of the Switch Transformer (eq. 4 to 6), for any k:
//
//   B = E / (k T²) · Σ_e c_e Σ_t p_te        ∂B/∂p_te = E / (k T²) · c_e
//
// over a unit of T tokens: c_e slots routed to expert e (no gradient), p_te the probabilities: softmax scores, or the
// scores of other rules normalised to one per token. B is 1 at perfect balance, and at most E / k. B of no token is 0. Where a
// selection leaves slots empty, k is the mean over tokens, Σ_e c_e / T.
//
// The counts of a global batch that is accumulated are not known when its first micro-batch runs backward. The gradient
// then takes the frequencies c_e / T of other tokens, c'_e / T', which the caller keeps in mo::step_counts and the loss
// names (Qwen, arXiv 2501.11873):
//
//   counts::own             of the unit itself; over::global_batch is then refused under accumulation
//   counts::prefix          of this step's micro-batches so far, this one included
//   counts::previous_step   of the last whole step; in the first step, or after one without a token, counts::own
//
//   ∂B/∂p_te = E / (k T T') · c'_e
//
// The value that is reported is of the statistics of the whole global batch, whatever the counts of the gradient.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/losses/loss.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// The tokens whose counts a gradient takes: how many there are, and the slots that they gave an expert.
namespace counts {
struct own {
  MOIETY_HD static std::int64_t tokens(statistics_view const& of) { return of.tokens(); }
  MOIETY_HD static std::int64_t slots(statistics_view const& of, std::size_t e) { return of.experts[e].count; }
};
struct prefix {
  MOIETY_HD static std::int64_t tokens(statistics_view const& of) { return of.tokens() + of.earlier.tokens(); }
  MOIETY_HD static std::int64_t slots(statistics_view const& of, std::size_t e) {
    return of.experts[e].count + of.earlier[e];
  }
};
struct previous_step {
  MOIETY_HD static std::int64_t tokens(statistics_view const& of) {
    return of.last_step.tokens() > 0 ? of.last_step.tokens() : of.tokens();
  }
  MOIETY_HD static std::int64_t slots(statistics_view const& of, std::size_t e) {
    return of.last_step.tokens() > 0 ? of.last_step[e] : of.experts[e].count;
  }
};
}  // namespace counts

template <class C>
concept count_source =
    std::same_as<C, counts::own> || std::same_as<C, counts::prefix> || std::same_as<C, counts::previous_step>;

template <loss_unit Over = over::micro_batch, count_source Counts = counts::own> struct load_balance {
  static constexpr std::string_view name = "load_balance";
  static constexpr bool needs_probabilities = true;
  static constexpr bool uses_step_counts = !std::same_as<Counts, counts::own>;
  static_assert(!uses_step_counts || std::same_as<Over, over::global_batch>,
                "mo::load_balance takes counts of other micro-batches over the global batch alone.");
  using unit = Over;
  float coefficient = 0;

  double value(statistics_view const& of) const {
    if (of.chosen() == 0) return 0;
    double sum = 0;
    for (expert_statistics const& e : of.experts) sum = fma(static_cast<double>(e.count), e.probability.value(), sum);
    return normaliser(of, of.tokens()) * sum;
  }

  template <score_row Row>
  MOIETY_HD void token_gradient(statistics_view const& of, typename Row::value_type factor, Row const&,
                                Row& dprobabilities, Row&) const {
    using S = typename Row::value_type;
    double const scale = static_cast<double>(factor) * normaliser(of, Counts::tokens(of));
    dprobabilities.map_indexed([&](S old, int e) {
      double const count = static_cast<double>(Counts::slots(of, static_cast<std::size_t>(e)));
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
  /// For counts of `counted` tokens and the probabilities of the unit.
  MOIETY_HD static double normaliser(statistics_view const& of, std::int64_t counted) {
    double const divisor = static_cast<double>(of.chosen()) * static_cast<double>(counted);
    return divisor > 0 ? static_cast<double>(of.experts.size()) / divisor : 0;
  }
};
static_assert(loss<load_balance<>>);

}  // namespace moiety
