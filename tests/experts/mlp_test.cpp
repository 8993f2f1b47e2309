// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/mlp.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cmath>

namespace mo = moiety;

static_assert(mo::expert_mlp<mo::gated_mlp<mo::gelu>> && mo::expert_mlp<mo::mlp<mo::identity>>);
static_assert(!mo::expert_mlp<mo::silu> && !mo::expert_mlp<int>);
static_assert(mo::gated_mlp<mo::silu>::inputs == 2 && mo::mlp<mo::silu>::inputs == 1);

namespace {

/// y of the worked example; a plain MLP has no up matrix.
template <class Mlp> std::array<double, 2> worked() {
  double const x[2] = {1, 2}, gate[3][2] = {{.5, -.25}, {1, .5}, {-.5, .75}},
               up[3][2] = {{1, 0}, {.5, -.5}, {.25, .25}}, down[2][3] = {{1, .5, -1}, {0, 2, .5}};
  std::array<double, 2> y{};
  for (int i = 0; i < 3; ++i) {
    mo::array<double, Mlp::inputs> z{gate[i][0] * x[0] + gate[i][1] * x[1]};
    if constexpr (Mlp::inputs == 2) z[1] = up[i][0] * x[0] + up[i][1] * x[1];
    double const a = Mlp::value(z);
    for (std::size_t h = 0; h < 2; ++h) y[h] += down[h][i] * a;
  }
  return y;
}

void check_worked(std::array<double, 2> const& y, double first, double second) {
  CHECK(std::abs(y[0] - first) < 1e-6);
  CHECK(std::abs(y[1] - second) < 1e-6);
}

}  // namespace

TEST_CASE("a gated MLP has three matrices, and the activation that it names") {
  check_worked(worked<mo::gated_mlp<mo::silu>>(), -.988692, -1.487447);
  check_worked(worked<mo::gated_mlp<mo::gelu_tanh>>(), -1.119543, -1.639151);
}

TEST_CASE("two of the three matrices are another function: a plain MLP") {
  check_worked(worked<mo::mlp<mo::silu>>(), .149738, 3.888718);
  check_worked(worked<mo::mlp<mo::gelu_tanh>>(), .136107, 4.329791);
}

TEST_CASE("derivatives of both inputs equal differences") {
  mo::array<double, 2> const z{0.7, -1.3};
  mo::array<double, 2> dz{};
  mo::gated_mlp<mo::gelu>::derivative(z, 3.0, dz);
  for (std::size_t i = 0; i < 2; ++i) {
    auto const at = [&](double step) {
      auto moved = z;
      moved[i] += step;
      return 3 * mo::gated_mlp<mo::gelu>::value(moved);
    };
    CHECK(dz[i] == doctest::Approx((at(1e-6) - at(-1e-6)) / 2e-6).epsilon(1e-8));
  }
  mo::array<double, 1> one{};
  mo::mlp<mo::gelu>::derivative(mo::array{0.7}, 3.0, one);
  CHECK(one[0] == doctest::Approx(3 * mo::gelu::derivative(0.7)));
}
