// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/selection_bias_step.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 4, .experts = 6}> {
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>, mo::renormalised>;
};

}  // namespace

TEST_CASE("the counts of a report move the layer's bias, and the bias moves the next routing") {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx, {.router = {mo::selection_bias{.rate = 0.5f}}}};
  auto weights = layer.make_weights(mo::seed{1});
  mo::matrix<float> x(300, 8), y(300, 8);
  mo::fill_normal(ctx, x, mo::seed{2});
  for (std::int64_t t = 0; t < 300; ++t) x(t, 0) += 2;  // a skew
  auto const counts = layer.report(layer.forward(weights, x, y)).counts();
  std::vector<float> expected(6);
  mo::selection_bias{.rate = 0.5f}.update(counts, expected);
  layer.update_selection_bias(weights, counts);
  CHECK(std::equal(expected.begin(), expected.end(), weights.selection_bias()));
  auto const after = layer.report(layer.forward(weights, x, y)).counts();
  for (std::size_t e = 0; e < 6; ++e) CHECK((counts[e] > 100 ? after[e] < counts[e] : after[e] >= counts[e]));
}

TEST_CASE("counts of fewer or more experts are refused, and nothing changes") {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  for (std::size_t const size : {0u, 5u, 7u, 1000u}) {
    std::vector<std::int64_t> counts(size);
    for (std::size_t e = 0; e < size; ++e) counts[e] = static_cast<std::int64_t>(e);
    CHECK_THROWS_WITH_AS(layer.update_selection_bias(weights, counts),
                         doctest::Contains("a selection bias of 6 experts was given the counts of"), mo::data_error);
    for (std::int64_t e = 0; e < 6; ++e) CHECK(weights.selection_bias()[e] == 0);
  }
}
