// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/mixtral.hpp>

#include <moiety/moiety.hpp>
#include <moiety/presets.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;
using preset = mo::presets::mixtral_8x7b;

TEST_CASE("mixtral_8x7b is most of the published model, and its active part of the published active part") {
  // The rest of the model is attention, embeddings and norms.
  double const layers = 32, published = 46.7e9, published_active = 12.9e9;
  CHECK(layers * static_cast<double>(mo::parameters<preset>) < published);
  CHECK(layers * static_cast<double>(mo::parameters<preset>) > 0.92 * published);
  CHECK(layers * static_cast<double>(mo::active_parameters<preset>) < published_active);
  CHECK(layers * static_cast<double>(mo::active_parameters<preset>) > 0.5 * published_active);
}

TEST_CASE("mixtral_8x7b runs when it is made small") {
  using small = mo::resized<preset, mo::dims{.hidden = 16, .ffn = 8, .experts = 16}>;
  mo::context<> ctx;
  mo::moe_layer<small> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(5, 16), y = ctx.matrix(5, 16);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto const tape = layer.forward(weights, x, y);
  CHECK(layer.report(tape).max_over_mean() >= 1);
}
