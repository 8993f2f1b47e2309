// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/convention.hpp>

#include "losses/differences.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace mo = moiety;

namespace {

/// The routing of one layer as other systems see it: probabilities [T × E], experts of each token in order of choice.
struct layer {
  std::vector<std::vector<double>> probabilities;
  std::vector<std::vector<std::size_t>> chosen;
  double balance;  // by mo::load_balance
  std::size_t experts() const { return probabilities.front().size(); }

  /// f_e of the first `choices` choices, and P_e.
  std::vector<double> frequencies(std::size_t choices) const {
    std::vector<double> f(experts());
    for (auto const& token : chosen)
      for (std::size_t j = 0; j < choices; ++j) f[token[j]] += 1 / static_cast<double>(chosen.size());
    return f;
  }
  std::vector<double> means() const {
    std::vector<double> p(experts());
    for (auto const& token : probabilities)
      for (std::size_t e = 0; e < p.size(); ++e) p[e] += token[e] / static_cast<double>(probabilities.size());
    return p;
  }
};

layer make_layer(std::int64_t tokens, std::int64_t experts, std::int64_t slots, std::uint64_t number) {
  differences::problem p(1, 1, 1, 1);  // for its context
  mo::matrix<double> z(tokens, experts);
  mo::fill_normal(p.ctx, z, mo::seed{number});
  for (std::int64_t t = 0; t < tokens; ++t) z(t, 0) += 1;
  layer l;
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < tokens; ++t) {
    double peak = 0, sum = 0;
    std::vector<double> row;
    for (std::int64_t e = 0; e < experts; ++e) peak = std::max(peak, z(t, e));
    for (std::int64_t e = 0; e < experts; ++e) sum += std::exp(z(t, e) - peak);
    for (std::int64_t e = 0; e < experts; ++e) row.push_back(std::exp(z(t, e) - peak) / sum);
    std::vector<std::size_t> order(row.size());
    for (std::size_t e = 0; e < order.size(); ++e) order[e] = e;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return row[a] > row[b]; });
    order.resize(static_cast<std::size_t>(slots));
    for (std::size_t const e : order) ids.push_back(static_cast<std::int32_t>(e));
    l.probabilities.push_back(row), l.chosen.push_back(order);
  }
  std::vector<double> weights(ids.size());
  std::vector<mo::token_state> states(static_cast<std::size_t>(tokens), mo::token_state::routed);
  mo::routing_view<double> const routes{tokens, experts, slots, ids.data(), weights.data(), states.data()};
  l.balance = mo::load_balance<>{}.value(mo::statistics(p.ctx, z, differences::softmax{}, routes));
  return l;
}

double dot(std::vector<double> const& a, std::vector<double> const& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// load_balancing_loss_func: one-hot means for each choice, over the rows of all layers.
double huggingface(std::vector<layer> const& layers) {
  std::size_t const k = layers[0].chosen[0].size(), experts = layers[0].experts();
  std::vector<std::vector<double>> mask(k, std::vector<double>(experts));
  std::vector<double> probability(experts);
  double rows = 0;
  for (layer const& l : layers)
    for (std::size_t t = 0; t < l.chosen.size(); ++t, ++rows)
      for (std::size_t e = 0; e < experts; ++e) {
        probability[e] += l.probabilities[t][e];
        for (std::size_t j = 0; j < k; ++j) mask[j][e] += l.chosen[t][j] == e ? 1 : 0;
      }
  double sum = 0;
  for (auto const& choice : mask)
    for (std::size_t e = 0; e < experts; ++e) sum += choice[e] / rows * (probability[e] / rows);
  return static_cast<double>(experts) * sum;
}

/// Algorithm 1: the mean over experts of (first choices / S) · m_e.
double gshard(std::vector<layer> const& layers) {
  double sum = 0;
  for (layer const& l : layers) sum += dot(l.frequencies(1), l.means()) / static_cast<double>(l.experts());
  return sum;
}

/// topkgating: the mean of me · ce, times E² / k.
double deepspeed(std::vector<layer> const& layers) {
  double sum = 0;
  for (layer const& l : layers) {
    auto const experts = static_cast<double>(l.experts()), k = static_cast<double>(l.chosen[0].size());
    sum += dot(l.frequencies(l.chosen[0].size()), l.means()) / experts * experts * experts / k;
  }
  return sum;
}

/// Tokens per expert and mean probability of each layer, scaled by E / (layers · tokens · k).
double nanotron(std::vector<layer> const& layers) {
  double sum = 0;
  for (layer const& l : layers) {
    std::vector<double> counts = l.frequencies(l.chosen[0].size());
    for (double& c : counts) c *= static_cast<double>(l.chosen.size());
    sum += static_cast<double>(l.experts()) * dot(counts, l.means()) /
           static_cast<double>(layers.size() * l.chosen.size() * l.chosen[0].size());
  }
  return sum;
}

template <class Convention>
void agrees(std::function<double(std::vector<layer> const&)> const& system, std::vector<layer> const& layers) {
  double unit = 0;
  for (layer const& l : layers) unit += l.balance;
  mo::loss_shape const shape{static_cast<std::int64_t>(layers[0].experts()),
                             static_cast<std::int64_t>(layers[0].chosen[0].size()),
                             static_cast<std::int64_t>(layers.size())};
  CHECK(system(layers) == doctest::Approx(Convention::ratio(shape).value() * unit).epsilon(1e-13));
  // The same term of the loss, by their coefficient and by ours.
  double const ours = mo::convert_coefficient<Convention, mo::convention::unit>(0.01, shape);
  CHECK(ours * unit == doctest::Approx(0.01 * system(layers)).epsilon(1e-13));
}

struct twice {
  static constexpr mo::loss_ratio ratio(mo::loss_shape const&) { return {2, 1}; }
};

}  // namespace

static_assert(mo::loss_convention<mo::convention::unit> && mo::loss_convention<twice> && !mo::loss_convention<int>);

TEST_CASE("ratios are those of each system's formula, worked out directly at the same routing") {
  for (std::int64_t const experts : {4, 7, 60}) {
    layer const top_1 = make_layer(50, experts, 1, 1), other_1 = make_layer(30, experts, 1, 2);
    layer const top_4 = make_layer(50, experts, 4, 3), other_4 = make_layer(31, experts, 4, 4);
    for (auto const& layers : {std::vector{top_1}, std::vector{top_1, other_1}}) {
      agrees<mo::convention::gshard>(gshard, layers);
      agrees<mo::convention::deepspeed>(deepspeed, layers);
      agrees<mo::convention::nanotron>(nanotron, layers);
    }
    for (auto const& layers : {std::vector{top_4}, std::vector{top_4, other_4, top_4}}) {
      agrees<mo::convention::deepspeed>(deepspeed, layers);
      agrees<mo::convention::nanotron>(nanotron, layers);
    }
    agrees<mo::convention::huggingface>(huggingface, {top_1});
    agrees<mo::convention::huggingface>(huggingface, {top_4});
    agrees<mo::convention::huggingface>(huggingface, {top_4, top_4, top_4});  // layers that are loaded alike
  }
}

TEST_CASE("pooled layers may offset one another, which no ratio mends") {
  layer first = make_layer(40, 4, 1, 1), second = first;
  for (std::size_t t = 0; t < 40; ++t) {
    std::rotate(second.probabilities[t].begin(), second.probabilities[t].begin() + 2, second.probabilities[t].end());
    second.chosen[t][0] = (second.chosen[t][0] + 2) % 4;
  }
  CHECK(huggingface({first, second}) < 0.9 * first.balance);
}

TEST_CASE("coefficients convert, as exactly as a double allows") {
  namespace of = mo::convention;
  constexpr mo::loss_shape qwen3{.experts = 128, .slots = 8, .layers = 48};
  static_assert(mo::convert_coefficient<of::unit, of::unit>(0.01, qwen3) == 0.01);
  CHECK(mo::convert_coefficient<of::huggingface, of::unit>(0.001, qwen3) == 0.001 / 6);
  CHECK(mo::convert_coefficient<of::unit, of::huggingface>(0.001, qwen3) == 0.001 * 6);
  CHECK(mo::convert_coefficient<of::gshard, of::unit>(3, qwen3) == 3 * 0x1p-14);
  CHECK(mo::convert_coefficient<of::unit, of::gshard>(3, qwen3) == 3 * 0x1p14);
  CHECK(mo::convert_coefficient<of::deepspeed, of::unit>(0.01, qwen3) == 0.01);
  CHECK(mo::convert_coefficient<of::nanotron, of::unit>(0.01, qwen3) == 0.01 / 48);
  CHECK(mo::convert_coefficient<of::huggingface, of::nanotron>(0.001, qwen3) == 0.008);
  CHECK(mo::convert_coefficient<twice, of::unit>(0.25, {}) == 0.5);
  CHECK(mo::convert_coefficient<of::unit, of::unit>(0.01, {}) == 0.01);
  CHECK_THROWS_WITH_AS((mo::convert_coefficient<of::unit, of::unit>(1, {.experts = 0})),
                       "a convention needs at least 1 expert, slot and layer, but was given 0, 1 and 1.",
                       mo::config_error);
  CHECK_THROWS_AS((mo::convert_coefficient<of::huggingface, of::unit>(1, {.layers = 0})), mo::config_error);
  CHECK_THROWS_AS((mo::convert_coefficient<of::unit, of::nanotron>(1, {.slots = -1})), mo::config_error);
}

TEST_CASE("the balanced values of the table") {
  constexpr mo::loss_shape shape{.experts = 16, .slots = 4, .layers = 10};
  // Σ_l B_l is 10
  CHECK(mo::convention::huggingface::ratio(shape).value() * 10 == 4);
  CHECK(mo::convention::gshard::ratio(shape).value() * 10 == 10.0 / 256);
  CHECK(mo::convention::nanotron::ratio(shape).value() * 10 == 1);
}
