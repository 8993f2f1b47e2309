// SPDX-License-Identifier: Apache-2.0
// Score rules: what a router makes of one token's logits z.
//
//   softmax         p_e = exp(z_e − max z) / Σ_j exp(z_j − max z) dz_e = p_e (g_e − Σ_j g_j p_j)
//   sigmoid         s_e = 1 / (1 + exp(−z_e))                     dz_e = g_e s_e (1 − s_e)
//   sqrt_softplus   s_e = √log(1 + exp z_e)                       dz_e = g_e (1 − exp(−s_e²)) / (2 s_e)
//   raw_logits      s_e = z_e                                     dz_e = g_e
//
// A rule is a struct of two members on rows: forward(row) turns logits into scores; backward(scores, gradient) turns
// the gradient of the scores into that of the logits. A rule whose rows sum to one says so by
// `static constexpr bool rows_are_probabilities = true`; balance losses normalise the rows of the others, whose scores are
// not negative. A rule whose scores can be negative says `static constexpr bool has_probabilities = false`: its statistics
// have none, and losses that need them refuse it.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>

#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class R>
concept score_rule = requires(R const rule, span_row<float> row, span_row<float> const scores) {
  rule.forward(row);
  rule.backward(scores, row);
};

template <score_rule R> inline constexpr bool rows_are_probabilities = false;
template <score_rule R>
requires requires { R::rows_are_probabilities; }
inline constexpr bool rows_are_probabilities<R> = R::rows_are_probabilities;

/// Whether the scores of a row can be read as probabilities, once normalised.
template <score_rule R> inline constexpr bool has_probabilities = true;
template <score_rule R>
requires requires { R::has_probabilities; }
inline constexpr bool has_probabilities<R> = R::has_probabilities;

struct softmax {
  static constexpr std::string_view name = "softmax";
  static constexpr bool rows_are_probabilities = true;

  MOIETY_HD void forward(score_row auto& row) const {
    auto const peak = row.max();
    row.map([&](auto v) { return moiety::exp(v - peak); });
    auto const total = row.sum();
    row.map([&](auto v) { return v / total; });
  }

  MOIETY_HD void backward(score_row auto const& scores, score_row auto& gradient) const {
    auto const inner = moiety::dot(scores, gradient);
    gradient.map(scores, [&](auto g, auto p) { return p * (g - inner); });
  }
};
static_assert(score_rule<softmax>);

struct sigmoid {
  static constexpr std::string_view name = "sigmoid";
  static constexpr bool rows_are_probabilities = false;

  MOIETY_HD void forward(score_row auto& row) const {
    row.map([](auto v) { return moiety::logistic(v); });
  }

  MOIETY_HD void backward(score_row auto const& scores, score_row auto& gradient) const {
    gradient.map(scores, [](auto g, auto s) { return g * (s * (1 - s)); });
  }
};
static_assert(score_rule<sigmoid>);

struct sqrt_softplus {
  static constexpr std::string_view name = "sqrt_softplus";
  static constexpr bool rows_are_probabilities = false;

  MOIETY_HD void forward(score_row auto& row) const {
    row.map([]<class S>(S v) {
      S const rest = moiety::log1p(moiety::exp(v > 0 ? -v : v));
      return moiety::sqrt(v > 0 ? v + rest : rest);
    });
  }

  MOIETY_HD void backward(score_row auto const& scores, score_row auto& gradient) const {
    gradient.map(scores, [](auto g, auto s) { return g * slope(s); });
  }

 private:
  /// (1 − exp(−s²)) / (2 s), which is s/2 near 0.
  template <class S> MOIETY_HD static S slope(S s) {
    S const q = s * s;
    if (q > S{1} / 16) return (1 - moiety::exp(-q)) / (2 * s);
    S series = 1;  // of (1 − exp(−q)) / q
    MOIETY_UNROLL(9)
    for (int n = 10; n >= 2; --n) series = 1 - q / static_cast<S>(n) * series;
    return s / 2 * series;
  }
};
static_assert(score_rule<sqrt_softplus>);

struct raw_logits {
  static constexpr std::string_view name = "raw_logits";
  static constexpr bool rows_are_probabilities = false, has_probabilities = false;

  MOIETY_HD void forward(score_row auto&) const {}
  MOIETY_HD void backward(score_row auto const&, score_row auto&) const {}
};
static_assert(score_rule<raw_logits>);

}  // namespace moiety
