// SPDX-License-Identifier: Apache-2.0
// Weight rules: how much each selected expert counts. S is the set of k experts selected for a token.
//
//   as_scored             w_j = s_j
//   renormalised          w_j = s_j / (Σ_S s + 10⁻²⁰)         ds_j = (g_j − Σ_S g w) / (Σ_S s + 10⁻²⁰)
//   softmax_of_selected   w_j = exp(z_j) / Σ_S exp(z)         dz_j = w_j (g_j − Σ_S g w)
//   scale<Ratio>          w_j ← factor · w_j, after the rule; the factor is the ratio unless set at run time
//
// What they multiply is a role of its own:
//
//   on_output       y_t = Σ_j w_j · expert_j(x_t)     the default
//   on_activation   the same, multiplied in before the last product: y_t = Σ_j W_down (w_j a) + w_j b_down (Megatron)
//   on_input        y_t = Σ_j expert_j(w_j x_t)       Llama-4
//
// A rule is a struct of the constant `source` (whether it starts from the scores or from the logits of the selected
// experts) and two members on rows of k values: forward(row), and backward(inputs, weights, gradient), which turns the
// gradient of the weights into that of the inputs. One that looks at all logits of a token (router/sparsemixer.hpp) has
// forward(logits, scratch, ids, weights), and backward(logits, scratch, ids, dweights, dlogits), which adds; scratch has E
// values.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>

#include <concepts>
#include <cstdint>
#include <ratio>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// What a weight rule starts from: the scores or the logits of the selected experts, or all logits of the token.
enum class weight_source { scores, logits, row };

template <class W>
concept row_weight_rule = requires(W const rule, span_row<float> row, span_row<float> const saved,
                                   std::int32_t const* ids) {
  requires W::source == weight_source::row;
  rule.forward(saved, row, ids, row);
  rule.backward(saved, row, ids, saved, row);
};

template <class W>
concept weight_rule = row_weight_rule<W> || requires(W const rule, span_row<float> row, span_row<float> const saved) {
  { W::source } -> std::convertible_to<weight_source>;
  rule.forward(row);
  rule.backward(saved, saved, row);
};

struct as_scored {
  static constexpr std::string_view name = "as_scored";
  static constexpr weight_source source = weight_source::scores;

  MOIETY_HD void forward(score_row auto&) const {}
  MOIETY_HD void backward(score_row auto const&, score_row auto const&, score_row auto&) const {}
};
static_assert(weight_rule<as_scored>);

struct renormalised {
  static constexpr std::string_view name = "renormalised";
  static constexpr weight_source source = weight_source::scores;
  static constexpr double floor = 1e-20;  // all selected scores can be 0 in float

  template <score_row Row> MOIETY_HD static auto divisor(Row const& scores) {
    return scores.sum() + static_cast<typename Row::value_type>(floor);
  }

  MOIETY_HD void forward(score_row auto& row) const {
    auto const total = divisor(row);
    row.map([&](auto v) { return v / total; });
  }

  MOIETY_HD void backward(score_row auto const& scores, score_row auto const& weights, score_row auto& gradient) const {
    auto const total = divisor(scores);
    auto const inner = moiety::dot(weights, gradient);
    gradient.map([&](auto g) { return (g - inner) / total; });
  }
};
static_assert(weight_rule<renormalised>);

struct softmax_of_selected {
  static constexpr std::string_view name = "softmax_of_selected";
  static constexpr weight_source source = weight_source::logits;

  MOIETY_HD void forward(score_row auto& row) const {
    auto const peak = row.max();
    row.map([&](auto v) { return moiety::exp(v - peak); });
    auto const total = row.sum();
    row.map([&](auto v) { return v / total; });
  }

  MOIETY_HD void backward(score_row auto const&, score_row auto const& weights, score_row auto& gradient) const {
    auto const inner = moiety::dot(weights, gradient);
    gradient.map(weights, [&](auto g, auto w) { return w * (g - inner); });
  }
};
static_assert(weight_rule<softmax_of_selected>);

/// What router weights multiply.
enum class weight_place { output, activation, input };

struct on_output {
  static constexpr weight_place place = weight_place::output;
};
struct on_activation {
  static constexpr weight_place place = weight_place::activation;
};
struct on_input {
  static constexpr weight_place place = weight_place::input;
};

template <class T>
inline constexpr bool is_weight_place =
    std::same_as<T, on_output> || std::same_as<T, on_activation> || std::same_as<T, on_input>;

template <class Ratio = std::ratio<1>> struct scale {
  static constexpr std::string_view name = "scale";
  float factor = static_cast<float>(static_cast<double>(Ratio::num) / static_cast<double>(Ratio::den));
};

template <class T> inline constexpr bool is_scale = false;
template <class Ratio> inline constexpr bool is_scale<scale<Ratio>> = true;

}  // namespace moiety
