// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/expected_load.hpp>

#include <moiety/router/logit_noise.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

/// Of nothing random: ε = 1 of the first expert and −1 of the others, σ = a².
struct known {
  static constexpr bool is_learned = true;
  template <class S> S draw(std::int64_t, std::int64_t, std::int64_t e, std::int64_t) const { return e == 0 ? 1 : -1; }
  template <class S> S deviation(S a) const { return a * a; }
};

/// A routing of which nothing but states and k is looked at.
template <class S> mo::routing_view<S> routing(std::vector<mo::token_state>& states, std::int64_t experts) {
  return {static_cast<std::int64_t>(states.size()), experts, 1, nullptr, nullptr, states.data()};
}

constexpr auto routed = mo::token_state::routed, masked = mo::token_state::masked;

}  // namespace

TEST_CASE_TEMPLATE("loads by hand, of the tokens that are routed, for each unit", S, float, double) {
  mo::host_engine engine{mo::host{.threads = 1}};
  std::vector<mo::token_state> states{routed, masked, routed, routed};
  S const nan = std::numeric_limits<S>::quiet_NaN();
  // z̃ = {3, 1}: margins 2 and −2 over σ, less ε
  std::vector<S> const a{1, 2, nan, nan, 2, 1, 1, 1}, z{3, 1, nan, nan, 1, 3, 3, 1};
  double const first = mo::normal_cdf(2 - 1), second = mo::normal_cdf(-0.5 + 1);
  double const third = mo::normal_cdf(-0.5 - 1), fourth = mo::normal_cdf(2 + 1), fifth = mo::normal_cdf(-2 + 1);
  std::vector<std::int64_t> const sequences{0, 1, 1, 4};
  mo::statistics_table whole(2, {}, 0, true), cut(2, sequences, 0, true);
  for (mo::statistics_table* table : {&whole, &cut})
    mo::kernels::add_expected_loads<known, S>(engine, {}, {}, routing<S>(states, 2), {a.data(), 4, 2}, {z.data(), 4, 2},
                                              table->view());
  auto const loads = [](mo::statistics_table& of, std::int64_t unit) {
    return mo::routing_statistics(of.view().unit(unit)).expected_loads();
  };
  CHECK(loads(whole, 0)[0] == doctest::Approx(first + third + first).epsilon(1e-15));
  CHECK(loads(whole, 0)[1] == doctest::Approx(second + fourth + fifth).epsilon(1e-15));
  CHECK(loads(cut, 0) == loads(whole, 0));
  CHECK(loads(cut, 1) == std::vector<double>{first, second});
  CHECK(loads(cut, 2) == std::vector<double>{0, 0});
  CHECK(loads(cut, 3)[0] == doctest::Approx(third + first).epsilon(1e-15));
}

TEST_CASE("gradients are added to those of routed tokens; a deviation of another has none") {
  mo::host_engine engine{mo::host{.threads = 1}};
  std::vector<mo::token_state> states{routed, masked};
  double const nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> const a{1, 2, nan, nan}, z{3, 1, nan, nan};
  std::vector<double> dz{1, 1, 1, 1}, dsigma{7, 7, 7, 7};
  auto const gradient = [&](mo::matrix_view<double> into) {
    mo::kernels::expected_load_gradient<known, double>(
        engine, {}, {}, routing<double>(states, 2), {a.data(), 2, 2}, {z.data(), 2, 2},
        [](std::int64_t t, auto logits, auto dp, auto dlogits) {
          CHECK(t == 0);
          CHECK(logits[1] == 1);
          CHECK(dp[0] + dp[1] == 0);
          CHECK(dlogits[0] == 1);
          dp[1] += 4, dlogits[1] += 2;
        },
        {dz.data(), 2, 2}, into);
  };
  gradient({dsigma.data(), 2, 2});
  double const g = 4 * std::exp(-0.125) / std::sqrt(2 * std::acos(-1.0)) / 4;  // φ(−½ + 1) / σ
  CHECK(dz[0] == doctest::Approx(1 - g).epsilon(1e-14));
  CHECK(dz[1] == doctest::Approx(3 + g).epsilon(1e-14));
  CHECK((dz[2] == 1 && dz[3] == 1));
  CHECK(dsigma[0] == 0);
  CHECK(dsigma[1] == doctest::Approx(g * 0.5).epsilon(1e-14));
  CHECK((dsigma[2] == 0 && dsigma[3] == 0));
  dz = {1, 1, 1, 1};
  gradient({});
  CHECK(dz[1] == doctest::Approx(3 + g).epsilon(1e-14));
}

TEST_CASE("one and three threads sum the same bits") {
  std::int64_t const tokens = 700, experts = 9;
  std::vector<float> a, z;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(tokens * experts); ++i)
    a.push_back(static_cast<float>(mo::normal(mo::seed{1}, 0, i))),
        z.push_back(static_cast<float>(mo::normal(mo::seed{2}, 0, i)));
  std::vector<mo::token_state> states(static_cast<std::size_t>(tokens), routed);
  auto const sums = [&](int threads) {
    mo::host_engine engine{mo::host{.threads = threads}};
    mo::statistics_table table(experts, {}, 0, true);
    mo::kernels::add_expected_loads<mo::logit_noise, float>(engine, {}, {}, routing<float>(states, experts),
                                                            {a.data(), tokens, experts}, {z.data(), tokens, experts},
                                                            table.view());
    return mo::routing_statistics(table.view().unit(0));
  };
  CHECK(sums(1) == sums(3));
}
