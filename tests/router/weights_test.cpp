// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/weights.hpp>

#include <moiety/router/score.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

std::vector<double> weighed(auto const& rule, std::vector<double> inputs) {
  mo::span_row<double> row(inputs.data(), static_cast<std::int64_t>(inputs.size()));
  rule.forward(row);
  return inputs;
}

void differences_agree(auto const& rule) {
  std::vector<double> inputs{0.5, 0.3, 0.05};
  std::vector<double> const c{1.0, -2.0, 0.5};
  std::vector<double> weights = weighed(rule, inputs), gradient = c;
  mo::span_row<double> in(inputs.data(), 3), w(weights.data(), 3), g(gradient.data(), 3);
  rule.backward(in, w, g);
  for (std::size_t i = 0; i < 3; ++i) {
    auto const at = [&](double step) {
      std::vector<double> moved = inputs;
      moved[i] += step;
      std::vector<double> const values = weighed(rule, moved);
      return c[0] * values[0] + c[1] * values[1] + c[2] * values[2];
    };
    CHECK(gradient[i] == doctest::Approx((at(1e-6) - at(-1e-6)) / 2e-6).epsilon(1e-7));
  }
}

}  // namespace

static_assert(mo::weight_rule<mo::as_scored> && mo::weight_rule<mo::renormalised> &&
              mo::weight_rule<mo::softmax_of_selected>);
static_assert(!mo::weight_rule<mo::softmax> && !mo::score_rule<mo::renormalised> && !mo::weight_rule<int>);
static_assert(mo::is_scale<mo::scale<std::ratio<5, 2>>> && !mo::is_scale<mo::renormalised>);

TEST_CASE("renormalised weights sum to one, also where every score underflowed") {
  auto const w = weighed(mo::renormalised{}, {0.6, 0.2});
  CHECK(w[0] == doctest::Approx(0.75));
  CHECK(w[1] == doctest::Approx(0.25));
  CHECK(weighed(mo::renormalised{}, {0, 0}) == std::vector<double>{0, 0});
}

TEST_CASE("softmax of the selected logits is the renormalised softmax of all") {
  auto const w = weighed(mo::softmax_of_selected{}, {2, 1});
  CHECK(std::abs(w[0] - .731059) < 1e-6);
  CHECK(std::abs(w[1] - .268941) < 1e-6);
  CHECK(weighed(mo::softmax_of_selected{}, {1e30, 0}) == std::vector<double>{1, 0});
}

TEST_CASE("as scored changes nothing") { CHECK(weighed(mo::as_scored{}, {0.6, 0.2}) == std::vector<double>{0.6, 0.2}); }

TEST_CASE("a scale starts from its ratio") {
  CHECK(mo::scale<>{}.factor == 1.0f);
  CHECK(mo::scale<std::ratio<5, 2>>{}.factor == 2.5f);
  CHECK(mo::scale<std::ratio<2827, 1000>>{}.factor == 2.827f);
}

TEST_CASE("gradients equal differences") {
  differences_agree(mo::as_scored{});
  differences_agree(mo::renormalised{});
  differences_agree(mo::softmax_of_selected{});
}
