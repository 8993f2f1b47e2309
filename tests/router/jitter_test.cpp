// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/jitter.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 5}> {
  using router = mo::router<mo::jitter<std::ratio<1, 10>>, mo::softmax, mo::top_k<2>>;
};
struct calm : spec {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

}  // namespace

TEST_CASE("factors lie within epsilon of 1, are spread evenly, and are a function of key, step, place and column") {
  mo::jitter<std::ratio<1, 10>> const noise;
  double sum = 0, squares = 0, least = 2, most = 0;
  constexpr std::int64_t tokens = 200, width = 100, count = tokens * width;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < width; ++h) {
      double const u = noise.factor<double>(t, 3, h, width);
      sum += u - 1, squares += (u - 1) * (u - 1), least = std::min(least, u), most = std::max(most, u);
    }
  double const deviation = 0.1 / std::sqrt(3.0);
  CHECK(std::abs(sum / count) < 4 * deviation / std::sqrt(static_cast<double>(count)));
  CHECK(squares / count == doctest::Approx(deviation * deviation).epsilon(0.05));
  CHECK(least >= 0.9);
  CHECK(least < 0.9005);
  CHECK(most < 1.1);
  CHECK(most > 1.0995);
  float const u = noise.factor<float>(7, 3, 2, width);
  CHECK(u == noise.factor<float>(7, 3, 2, width));
  CHECK(u != noise.factor<float>(8, 3, 2, width));
  CHECK(u != noise.factor<float>(7, 4, 2, width));
  CHECK(u != noise.factor<float>(7, 3, 3, width));
  CHECK(u != mo::jitter<std::ratio<1, 10>>{.key = mo::seed{1}}.factor<float>(7, 3, 2, width));
  CHECK(mo::jitter<>{.epsilon = 0}.factor<float>(7, 3, 2, width) == 1);
}

TEST_CASE("an epsilon that can never work is refused") {
  for (float const epsilon : {-0.1f, 1.0f, std::numeric_limits<float>::quiet_NaN()})
    CHECK_THROWS_WITH_AS(mo::jitter<>{.epsilon = epsilon}.check(),
                         doctest::Contains("the epsilon of mo::jitter must be at least 0 and below 1, but is"),
                         mo::config_error);
  CHECK_NOTHROW(mo::jitter<>{.epsilon = 0}.check());
}

TEST_CASE("in training the router sees x with its noise, however the batch was cut; experts and inference see x") {
  mo::context<> ctx;
  mo::moe_layer<spec> const layer{ctx};
  mo::moe_layer<calm> const without{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto const same = without.make_weights(mo::seed{1});
  mo::matrix<float> x(40, 6), noisy(40, 6), y(40, 6), z(40, 6);
  std::int64_t const moment = mo::token_table{.step = 9, .layer = 2}.moment();
  mo::fill_normal(ctx, x, mo::seed{2});
  for (std::int64_t t = 0; t < 40; ++t)
    for (std::int64_t h = 0; h < 6; ++h)
      noisy(t, h) = x(t, h) * spec::router{}.jitter().factor<float>(100 + t, moment, h, 6);
  auto const tape = layer.forward(weights, x, y, {.first_row = 100, .step = 9, .layer = 2});
  auto const expected = without.forward(same, noisy, z);
  CHECK(std::equal(tape.logits().data(), tape.logits().data() + 200, expected.logits().data()));
  auto const tail = layer.forward(weights, mo::matrix_view<float const>{x.row(10), 30, 6}, z.rows(0, 30),
                                  {.first_row = 110, .step = 9, .layer = 2});
  CHECK(std::equal(tail.logits().data(), tail.logits().data() + 150, tape.logits().row(10)));
  CHECK(std::equal(z.begin(), z.begin() + 180, y.row(10)));
  mo::matrix<float> inferred(40, 6);
  layer.infer(weights, x, inferred);
  without.infer(same, x, z);
  CHECK(std::equal(inferred.begin(), inferred.end(), z.begin()));
}
