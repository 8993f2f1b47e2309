// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/quantile_bias.hpp>

#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

namespace mo = moiety;

namespace {

/// −β by full sorts.
std::vector<double> expected(mo::matrix<double> const& s, std::size_t k, std::vector<float> const& bias) {
  auto const n = static_cast<std::size_t>(s.rows()), experts = bias.size();
  std::vector<double> thresholds, result;
  for (std::size_t t = 0; t < n; ++t) {
    std::vector<double> row;
    for (std::size_t e = 0; e < experts; ++e)
      row.push_back(s(static_cast<std::int64_t>(t), static_cast<std::int64_t>(e)) + static_cast<double>(bias[e]));
    std::sort(row.begin(), row.end(), std::greater<>{});
    thresholds.push_back(row[k]);
  }
  for (std::size_t e = 0; e < experts; ++e) {
    std::vector<double> d;
    for (std::size_t t = 0; t < n; ++t)
      d.push_back(s(static_cast<std::int64_t>(t), static_cast<std::int64_t>(e)) - thresholds[t]);
    std::sort(d.begin(), d.end(), std::greater<>{});
    double const r = static_cast<double>(n * k) / static_cast<double>(experts), whole = std::floor(r);
    auto const i = static_cast<std::size_t>(whole);
    result.push_back(-(d[i] + (r - whole) * (d[std::min(i + 1, n - 1)] - d[i])));
  }
  return result;
}

struct spec : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 4, .experts = 8}> {
  using router = mo::router<mo::sigmoid, mo::quantile_bias, mo::top_k<2>, mo::renormalised>;
};

}  // namespace

static_assert(mo::bias_rule<mo::quantile_bias>);

TEST_CASE("the quantiles are those of full sorts, for any number of tokens") {
  for (std::int64_t const tokens : {1, 2, 7, 64, 101})
    for (std::int64_t const experts : {2, 3, 8}) {
      CAPTURE(tokens);
      CAPTURE(experts);
      auto const s = rows::drawn<double>(tokens, experts, 4, true);
      std::vector<float> bias(static_cast<std::size_t>(experts));
      for (std::size_t e = 0; e < bias.size(); ++e) bias[e] = static_cast<float>(e % 3) * 0.25f;
      for (std::int64_t k = 1; k < experts; ++k) {
        auto const got =
            mo::quantile_bias::balancing(mo::matrix_view<double const>(s), k, std::span<float const>(bias));
        auto const wanted = expected(s, static_cast<std::size_t>(k), bias);
        for (std::size_t e = 0; e < wanted.size(); ++e) CHECK(got[e] == doctest::Approx(wanted[e]).epsilon(1e-12));
      }
    }
}

TEST_CASE("by hand: two experts, one of each token's, and a skew that one step removes") {
  mo::matrix<double> s(4, 2);
  for (std::int64_t t = 0; t < 4; ++t) s(t, 0) = static_cast<double>(t) + 1;  // expert 0 takes all
  std::vector<float> bias(2);
  // thresholds 0; d of expert 0: 4 3 2 1, two of which exceed 2; of expert 1: all 0
  auto const b = mo::quantile_bias::balancing(mo::matrix_view<double const>(s), 1, std::span<float const>(bias));
  CHECK(b == std::vector<double>{-2, 0});
}

TEST_CASE("where all experts are selected, or no token counts, the bias stays") {
  std::vector<float> bias{1, 2, 3};
  auto const s = rows::drawn<double>(5, 3, 1);
  std::vector<double> const same{1, 2, 3};
  CHECK(mo::quantile_bias::balancing(mo::matrix_view<double const>(s), 3, std::span<float const>(bias)) == same);
  CHECK(mo::quantile_bias::balancing(mo::matrix_view<double const>(nullptr, 0, 3), 1, std::span<float const>(bias)) ==
        same);
}

TEST_CASE("the step is the mean over the tapes, and as much of the old bias as the momentum says") {
  std::vector<std::vector<double>> const balanced{{2, -4}, {4, -8}};
  std::vector<float> bias{8, 16};
  mo::quantile_bias{}.update(balanced, bias);
  CHECK(bias == std::vector{3.0f, -6.0f});
  mo::quantile_bias{.momentum = 0.5f}.update(balanced, bias);
  CHECK(bias == std::vector{3.0f, -6.0f});
  bias = {8, 16};
  mo::quantile_bias{.momentum = 0.75f}.update(balanced, bias);
  CHECK(bias == std::vector{6.75f, 10.5f});
  mo::quantile_bias{}.update({}, bias);
  CHECK(bias == std::vector{6.75f, 10.5f});
}

TEST_CASE("a momentum that can never work is refused") {
  for (float const momentum : {-0.5f, 1.0f, std::numeric_limits<float>::quiet_NaN()})
    CHECK_THROWS_AS(mo::quantile_bias{.momentum = momentum}.check(), mo::config_error);
  CHECK_NOTHROW(mo::quantile_bias{.momentum = 0.9f}.check());
}

TEST_CASE("a few steps on one batch even out its load, and padding has no say") {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  mo::matrix<float> x(400, 8), y(400, 8);
  mo::fill_normal(ctx, x, mo::seed{2});
  std::vector<std::uint8_t> mask(400, 1);
  for (std::size_t t = 0; t < 80; ++t) mask[t] = 0;
  for (std::int64_t t = 0; t < 400; ++t) x(t, 0) += t < 80 ? -50.0f : 2.0f;
  auto const loads = [&] { return layer.report(layer.forward(weights, x, y, {.mask = mask})).counts(); };
  auto const first = loads();
  for (int step = 0; step < 8; ++step) {
    auto const tape = layer.forward(weights, x, y, {.mask = mask});
    layer.update_selection_bias(weights, tape);
  }
  auto const last = loads();
  CHECK(*std::max_element(first.begin(), first.end()) > 160);
  CHECK(*std::max_element(last.begin(), last.end()) < 100);  // 80 each would be even
  CHECK(*std::min_element(last.begin(), last.end()) > 60);
}
