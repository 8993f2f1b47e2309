// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/routing_stage.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 5}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::selection_bias>;
  using capacity = mo::capacity<std::ratio<3, 4>, mo::renormalise_after_drop>;
};

}  // namespace

TEST_CASE("a tape holds what the router alone gives, less what the capacity drops") {
  mo::context<> ctx;
  mo::moe_layer<spec> const layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  weights.selection_bias()[3] = 0.25f;
  mo::matrix<float> x(50, 6), y(50, 6);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto const tape = layer.forward(weights, x, y);
  mo::routing const asked = spec::router{}.with_bias(weights.selection_bias()).forward(ctx, tape.logits());
  std::int64_t rows = 0;
  std::vector<std::int64_t> counts(5);
  for (std::int64_t t = 0; t < 50; ++t)
    for (std::int64_t j = 0; j < 2; ++j) {
      CHECK(mo::asked_for(tape.routing().expert(t, j)) == asked.expert(t, j));
      ++counts[static_cast<std::size_t>(asked.expert(t, j))];
      rows += tape.routing().has_row(t, j) ? 1 : 0;
    }
  CHECK(tape.permutation().rows() == rows);
  CHECK(rows < 100);
  CHECK(layer.report(tape).counts() == counts);
  CHECK(tape.routed_offsets()[1] == 50);
}

TEST_CASE("the router of a layer is that of its options, with the bias of its weights") {
  mo::context<> ctx;
  mo::layer_options<spec> const options{.router = {mo::selection_bias{.rate = 0.5f}}};
  mo::moe_layer<spec> const layer{ctx, options};
  auto const weights = layer.make_weights(mo::seed{1});
  auto const router = mo::routing_stage<spec, mo::deployment<>>::router_of(options, weights);
  CHECK(router.bias().rate == 0.5f);
  CHECK(router.bias().values == weights.selection_bias());
}
