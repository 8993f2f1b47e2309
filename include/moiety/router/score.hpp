// SPDX-License-Identifier: Apache-2.0
// Score rules: what a router makes of one token's logits z.
//
//   softmax   p_e = exp(z_e − max z) / Σ_j exp(z_j − max z)       dz_e = p_e (g_e − Σ_j g_j p_j)
//   sigmoid   s_e = 1 / (1 + exp(−z_e))                           dz_e = g_e s_e (1 − s_e)
//
// A rule is a struct of two members on rows: forward(row) turns logits into scores; backward(scores, gradient) turns
// the gradient of the scores into that of the logits. A rule whose rows sum to one says so by
// `static constexpr bool rows_are_probabilities = true`; balance losses normalise the rows of the others.
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

}  // namespace moiety
