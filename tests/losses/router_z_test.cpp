// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/router_z.hpp>

#include "losses/differences.hpp"
#include "router/example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>

namespace mo = moiety;

namespace {

struct in_double : mo::deployment<> {
  using element = double;
};
using softmax = mo::router<mo::softmax, mo::top_k<2>>;
using sigmoid = mo::router<mo::sigmoid, mo::top_k<2>>;

template <class Router = softmax> mo::routing_statistics statistics(mo::matrix_view<double const> z) {
  mo::context<in_double> ctx{mo::host{.threads = 1}};
  return mo::statistics(ctx, z, Router{}, Router{}.forward(ctx, z));
}

template <class Router = softmax> double value(mo::matrix_view<double const> z) {
  return mo::router_z{.coefficient = 9}.value(statistics<Router>(z));
}

}  // namespace

TEST_CASE("the worked example, to six digits") {
  auto const z = example::make_logits<double>();
  CHECK(std::abs(value(z) - 7.104384) < 1e-6);
  CHECK(std::abs(value(example::make_logits<double>(1)) - 13.379321) < 1e-6);
  CHECK(value<sigmoid>(z) == value(z));
  double const lse[6] = {2.440190, 2.246567, 2.546006, 2.440190, 2.711667, 3.440190};
  for (int t = 0; t < 6; ++t) CHECK(std::abs(std::sqrt(value(z.rows(t, 1))) - lse[t]) < 1e-6);
  CHECK(std::abs(value(z.rows(0, 3)) - 5.827913) < 1e-6);
  CHECK(std::abs(value(z.rows(3, 3)) - 8.380856) < 1e-6);

  mo::context<in_double> ctx;
  mo::matrix<double> d(6, 4);
  mo::router_z{.coefficient = 9}.gradient(ctx, statistics(z), z, softmax{}, d);
  double const first[4] = {.523758, .192680, .070883, .026076}, fourth[4] = {.098992, .060042, .731458, .013397};
  for (int e = 0; e < 4; ++e) {
    CHECK(std::abs(d(0, e) - first[e]) < 1e-6);
    CHECK(std::abs(d(4, e) - fourth[e]) < 1e-6);
  }
}

TEST_CASE("one token of four logits by hand, and the same plus 10") {
  auto const of = [](double shift) {
    mo::matrix<double> z(1, 4);
    z(0, 0) = 3 + shift, z(0, 1) = 1 + shift, z(0, 2) = shift, z(0, 3) = -2 + shift;
    return z;
  };
  CHECK(std::abs(std::sqrt(value(of(0))) - 3.175515) < 1e-6);
  CHECK(std::abs(value(of(0)) - 10.083898) < 1e-6);
  CHECK(std::abs(value(of(10)) - 173.594205) < 1e-6);
  mo::context<in_double> ctx;
  mo::matrix<double> d(1, 4);
  mo::router_z{.coefficient = 9}.gradient(ctx, statistics(of(0)), of(0), softmax{}, d);
  double const expected[4] = {5.328670, .721157, .265299, .035904};
  for (int e = 0; e < 4; ++e) CHECK(std::abs(d(0, e) - expected[e]) < 1e-6);
}

TEST_CASE("equal logits give (ln E)^2, no token gives 0, a value that does not fit gives NaN") {
  CHECK(value(mo::matrix<double>(3, 4)) == doctest::Approx(1.921812).epsilon(1e-6));
  CHECK(value(mo::matrix<double>(3, 8)) == doctest::Approx(4.324077).epsilon(1e-6));
  CHECK(value(mo::matrix<double>(3, 64)) == doctest::Approx(17.296309).epsilon(1e-6));
  CHECK(value(mo::matrix<double>(0, 4)) == 0);
  mo::matrix<double> huge(2, 4);
  huge(1, 1) = 1e30;
  CHECK(std::isnan(value(huge)));
}

TEST_CASE_TEMPLATE("gradients equal differences", Router, softmax, sigmoid) {
  auto const z = example::make_logits<double>();
  mo::context<in_double> ctx;
  mo::matrix<double> d(6, 4);
  mo::router_z{}.gradient(ctx, statistics<Router>(z), z, Router{}, d);
  for (int t = 0; t < 6; ++t)
    for (int e = 0; e < 4; ++e) {
      auto const at = [&](double step) {
        auto moved = example::make_logits<double>();
        moved(t, e) += step;
        return value<Router>(moved);
      };
      CHECK(d(t, e) == doctest::Approx((at(1e-6) - at(-1e-6)) / 2e-6).epsilon(1e-7));
    }
}

TEST_CASE_TEMPLATE("gradients equal differences for any sizes", Router, differences::softmax, differences::sigmoid) {
  differences::check_all<mo::router_z, Router>();
}

TEST_CASE("parts add up to the whole") { differences::check_merge<mo::router_z, differences::softmax>(); }
