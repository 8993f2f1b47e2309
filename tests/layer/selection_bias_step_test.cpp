// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/selection_bias_step.hpp>

#include "layer/held.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
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

TEST_CASE("every layer that is here and in the report takes its step, and no other parameter changes") {
  mo::context<> ctx;
  std::vector<mo::layer_record<spec>> records(2);
  for (std::size_t l = 0; l < 2; ++l) {
    auto const experts = records[l].statistics.view().experts;
    for (std::size_t e = 0; e < experts.size(); ++e) experts[e].count = static_cast<std::int64_t>((3 + l) * e % 7);
  }
  mo::loss_report<spec> const report(records, {1, 4});
  held::parts<float> weights;
  for (int const layer : {1, 2, 4}) {
    std::string const prefix = "layers." + std::to_string(layer) + ".router.";
    weights.add(prefix + "weight", layer, 6, false);
    weights.add(prefix + "selection_bias", layer, 6, false);
  }
  auto expected = weights;
  mo::selection_bias const rule{.rate = 0.25f};
  rule.update(report.counts(0), expected[1]);
  rule.update(report.counts(1), expected[5]);
  mo::update_selection_biases(ctx, mo::layer_options<spec>{.router = {rule}}, weights, report);
  for (std::size_t i = 0; i < weights.size(); ++i) CHECK(weights[i] == expected[i]);
  CHECK(report.counts(0) != report.counts(1));
}
