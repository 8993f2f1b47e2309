// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/activation.hpp>

#include <doctest/doctest.h>

#include <cmath>

namespace mo = moiety;

namespace {

struct no_derivative {
  static auto value(auto v) { return v; }
};

}  // namespace

static_assert(!mo::activation<no_derivative> && !mo::activation<int>);

TEST_CASE("values to six digits") {
  auto const check = [](auto act, double at_1, double at_minus_1, double at_2) {
    CHECK(std::abs(act.value(1.0) - at_1) < 1e-6);
    CHECK(std::abs(act.value(-1.0) - at_minus_1) < 1e-6);
    CHECK(std::abs(act.value(2.0f) - at_2) < 2e-6);
  };
  check(mo::silu{}, .731059, -.268941, 1.761594);
  check(mo::gelu{}, .841345, -.158655, 1.954500);
  check(mo::gelu_tanh{}, .841192, -.158808, 1.954598);
  check(mo::gelu_quick{}, .845796, -.154204, 1.935659);
  check(mo::relu{}, 1, 0, 2);
  check(mo::relu_squared{}, 1, 0, 4);
  check(mo::identity{}, 1, -1, 2);
}

TEST_CASE_TEMPLATE("derivatives equal differences", Act, mo::silu, mo::gelu, mo::gelu_tanh, mo::gelu_quick, mo::relu,
                   mo::relu_squared, mo::identity) {
  for (double const v : {-6.0, -2.3, -0.7, -0.01, 0.02, 0.4, 1.9, 7.0}) {
    CAPTURE(v);
    double const difference = (Act::value(v + 1e-6) - Act::value(v - 1e-6)) / 2e-6;
    CHECK(std::abs(Act::derivative(v) - difference) < 1e-8);
    CHECK(std::abs(static_cast<double>(Act::derivative(static_cast<float>(v))) - difference) < 1e-5);
  }
}

TEST_CASE_TEMPLATE("far out values stay finite", Act, mo::silu, mo::gelu, mo::gelu_tanh, mo::gelu_quick, mo::relu,
                   mo::identity) {
  for (float const v : {-1e6f, -100.0f, 0.0f, 100.0f, 1e6f}) {
    CHECK(std::isfinite(Act::value(v)));
    CHECK(std::isfinite(Act::derivative(v)));
  }
}
