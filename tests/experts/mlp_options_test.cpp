// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/mlp_options.hpp>

#include <moiety/experts/mlp.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <ratio>

namespace mo = moiety;

namespace {

/// ∂a/∂z of both inputs, for da = 1.
template <class Mlp> mo::array<double, 2> slopes(double gate, double up) {
  mo::array<double, 2> dz{};
  Mlp::derivative(mo::array{gate, up}, 1.0, dz);
  return dz;
}

using gpt_oss = mo::clamped_swiglu<>;
using deepseek = mo::limited_swiglu<>;

}  // namespace

TEST_CASE_TEMPLATE("clamped SwiGLU: a = g σ(1.702 g) (u + 1), worked by hand", S, float, double) {
  auto const check = [](double gate, double up, double wanted) {
    S const a = gpt_oss::value(mo::array{static_cast<S>(gate), static_cast<S>(up)});
    CHECK(static_cast<double>(a) == doctest::Approx(wanted).epsilon(1e-6));
  };
  check(1, 2, 2.5373868);
  check(8, -9, -41.999719);    // 7 σ(11.914) · −6
  check(-3, 10, -0.14457048);  // −3 σ(−5.106) · 8: the gate has no lower limit
  check(7.5, .5, 10.49993);
}

TEST_CASE_TEMPLATE("limited SwiGLU: a = g σ(g) u, worked by hand", S, float, double) {
  auto const check = [](double gate, double up, double wanted) {
    S const a = deepseek::value(mo::array{static_cast<S>(gate), static_cast<S>(up)});
    CHECK(static_cast<double>(a) == doctest::Approx(wanted).epsilon(1e-6));
  };
  check(1, 2, 1.4621172);
  check(12, -30, -99.99546);
  check(-3, 10.5, -1.4227762);
}

TEST_CASE_TEMPLATE("gradients pass at a limit and are zero beyond it", Mlp, gpt_oss, deepseek) {
  double const limit = static_cast<double>(Mlp::options::template gate<double>(1e9)),
               beyond = std::nextafter(limit, 99);
  for (double const up : {-limit, 0.5, limit}) CHECK(slopes<Mlp>(1, up)[1] == slopes<Mlp>(1, 0.25)[1]);
  for (double const up : {-beyond, beyond}) CHECK(slopes<Mlp>(1, up)[1] == 0);
  CHECK(slopes<Mlp>(limit, 2)[0] != 0);
  CHECK(slopes<Mlp>(beyond, 2)[0] == 0);
  CHECK(slopes<Mlp>(-beyond, 2)[0] != 0);
}

TEST_CASE_TEMPLATE("gradients equal differences on either side of every limit", Mlp, gpt_oss, deepseek,
                   mo::clamped_swiglu<std::ratio<3, 2>>, mo::gated_mlp<mo::gelu, mo::up_offset<std::ratio<-1, 4>>>) {
  for (double const gate : {-20.0, -1.6, 0.3, 1.4, 1.6, 6.9, 7.1, 11.0})
    for (double const up : {-11.0, -7.1, -1.6, 0.2, 1.4, 6.9, 12.0})
      for (std::size_t i = 0; i < 2; ++i) {
        CAPTURE(gate);
        CAPTURE(up);
        auto const at = [&](double step) {
          mo::array<double, 2> z{gate, up};
          z[i] += step;
          return Mlp::value(z);
        };
        double const difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        CHECK(std::abs(slopes<Mlp>(gate, up)[i] - difference) < 1e-6 * (1 + std::abs(difference)));
      }
}

TEST_CASE("what is not a number stays so, and without options the gated MLP is the one it was") {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(gpt_oss::value(mo::array{nan, 1.0})));
  CHECK(std::isnan(gpt_oss::value(mo::array{1.0, nan})));
  CHECK(mo::gated_mlp<mo::silu>::value(mo::array{30.0, -40.0}) == mo::silu::value(30.0) * -40.0);
  static_assert(gpt_oss::options::up_offset_value<float> == 1.0f);
  static_assert(!mo::gated_mlp<mo::silu>::options::clamps && deepseek::options::clamps);
}
