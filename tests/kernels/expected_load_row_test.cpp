// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/expected_load_row.hpp>

#include <moiety/core/normal_cdf.hpp>
#include <moiety/core/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;
namespace row = moiety::kernels::detail;

namespace {

/// A row with its memory.
template <class S> struct values {
  std::vector<S> all;
  mo::span_row<S> row{all.data(), static_cast<std::int64_t>(all.size())};
};

template <class S> row::load_thresholds<S> thresholds(std::vector<S> noisy, std::int64_t slots) {
  values<S> z{noisy}, left{noisy};
  return {z.row, left.row, slots};
}

struct token {
  std::vector<double> z, epsilon, sigma;

  std::vector<double> noisy() const {
    std::vector<double> sums;
    for (std::size_t e = 0; e < z.size(); ++e) sums.push_back(z[e] + epsilon[e] * sigma[e]);
    return sums;
  }
  std::vector<double> chances(std::int64_t slots) const {
    values<double> m{noisy()}, draws{epsilon}, deviation{sigma}, left{z};
    row::to_margins(m.row, deviation.row, row::load_thresholds<double>(m.row, left.row, slots));
    row::to_chances(m.row, draws.row);
    for (double& v : m.all) v = mo::normal_cdf(v);
    return m.all;
  }
  /// Σ weight · P
  double objective(std::int64_t slots, std::vector<double> const& weight) const {
    double sum = 0;
    for (std::size_t e = 0; e < z.size(); ++e) sum += weight[e] * chances(slots)[e];
    return sum;
  }
};

token drawn(std::size_t experts, std::uint64_t number) {
  token t;
  for (std::size_t e = 0; e < experts; ++e) {
    t.z.push_back(mo::normal(mo::seed{number}, 1, e));
    t.epsilon.push_back(mo::normal(mo::seed{number}, 2, e));
    t.sigma.push_back(0.2 + std::abs(mo::normal(mo::seed{number}, 3, e)));
  }
  return t;
}

}  // namespace

TEST_CASE_TEMPLATE("an expert of the k is held against the one behind them, another against the last of them", S, float,
                   double) {
  auto const t = thresholds<S>({5, 1, 4, 3}, 2);
  CHECK(t.of(5, 0) == 3);
  CHECK(t.of(4, 2) == 3);
  CHECK(t.of(3, 3) == 4);
  CHECK(t.of(1, 1) == 4);
  CHECK(t.last_expert() == 2);
  CHECK(t.next_expert() == 3);
  auto const ties = thresholds<S>({2, 2, 2, 2}, 2);
  CHECK((ties.has(2, 0) && ties.has(2, 1) && !ties.has(2, 2) && !ties.has(2, 3)));
  CHECK(ties.last_expert() == 1);
  CHECK(ties.next_expert() == 2);
  auto const all = thresholds<S>({2, 1}, 2);
  CHECK(all.of(1, 1) == -std::numeric_limits<S>::infinity());
  CHECK(all.next_expert() == -1);
  CHECK(thresholds<S>({7}, 1).of(7, 0) == -std::numeric_limits<S>::infinity());
}

TEST_CASE("chances by hand") {
  // z̃ = {2, 1, 0}, k = 1: margins (2 − 1) / 2, (1 − 2) / 1, (0 − 2) / 4, less ε
  token const t{{0, 3, 4}, {1, -2, -1}, {2, 1, 4}};
  CHECK(t.noisy() == std::vector<double>{2, 1, 0});
  CHECK(t.chances(1) == std::vector<double>{mo::normal_cdf(-0.5), mo::normal_cdf(1), mo::normal_cdf(0.5)});
  CHECK(t.chances(2) == std::vector<double>{mo::normal_cdf(0), mo::normal_cdf(3), mo::normal_cdf(0.75)});
  CHECK(t.chances(3) == std::vector<double>{1, 1, 1});
}

TEST_CASE("their gradient by hand: the logit, the expert it is held against, and the deviation") {
  token const t{{0, 3, 4}, {1, -2, -1}, {2, 1, 4}};
  auto const density = [](double v) { return std::exp(-v * v / 2) / std::sqrt(2 * std::acos(-1.0)); };
  values<double> noisy{t.noisy()}, draws{t.epsilon}, deviation{t.sigma}, gradient{{10, 0, 0}}, dz{{1, 1, 1}},
      left{{0, 0, 0}};
  row::chance_gradient(noisy.row, draws.row, deviation.row, 1, gradient.row, dz.row, left.row);
  double const g = 10 * density(-0.5) / 2;
  CHECK(dz.all[0] == doctest::Approx(1 + g).epsilon(1e-14));
  CHECK(dz.all[1] == doctest::Approx(1 - g).epsilon(1e-14));
  CHECK(dz.all[2] == 1);
  CHECK(gradient.all[0] == doctest::Approx(-g * 0.5).epsilon(1e-14));
  CHECK(gradient.all[1] == 0);
}

TEST_CASE("gradients of logits and deviations equal differences, for every k") {
  for (std::size_t const experts : {1u, 2u, 3u, 8u, 40u})
    for (std::int64_t slots = 1; slots <= static_cast<std::int64_t>(experts); slots += 1 + slots / 3) {
      CAPTURE(experts);
      CAPTURE(slots);
      token const t = drawn(experts, 10 * experts + static_cast<std::uint64_t>(slots));
      std::vector<double> const weight = drawn(experts, 99).z;
      values<double> noisy{t.noisy()}, draws{t.epsilon}, deviation{t.sigma}, gradient{weight},
          dz{std::vector<double>(experts)}, left{t.z};
      row::chance_gradient(noisy.row, draws.row, deviation.row, slots, gradient.row, dz.row, left.row);
      auto const slope = [&](std::vector<double> token::*what, std::size_t e) {
        constexpr double h = 1e-6;
        token above = t, below = t;
        (above.*what)[e] += h, (below.*what)[e] -= h;
        return (above.objective(slots, weight) - below.objective(slots, weight)) / (2 * h);
      };
      for (std::size_t e = 0; e < experts; ++e) {
        CHECK(std::abs(dz.all[e] - slope(&token::z, e)) <= 1e-8);
        CHECK(std::abs(gradient.all[e] + dz.all[e] * t.epsilon[e] - slope(&token::sigma, e)) <= 1e-8);
      }
    }
}

TEST_CASE_TEMPLATE("logits that are far apart overflow to no NaN", S, float, double) {
  constexpr S most = std::numeric_limits<S>::max();
  values<S> noisy{{most, -most, 0, 1}}, draws{{1, -1, 6, -6}}, deviation{{S(0.01), most, 1, S(0.01)}},
      gradient{{1, 1, 1, 1}}, dz{{0, 0, 0, 0}}, left{{0, 0, 0, 0}};
  row::chance_gradient(noisy.row, draws.row, deviation.row, 2, gradient.row, dz.row, left.row);
  for (std::size_t e = 0; e < 4; ++e) {
    CHECK(std::isfinite(dz.all[e]));
    CHECK(std::isfinite(gradient.all[e]));
  }
}
