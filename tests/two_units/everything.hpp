// SPDX-License-Identifier: Apache-2.0
// Every umbrella, and a layer and a schedule that use them.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>
#include <moiety/presets.hpp>
#include <moiety/testing.hpp>

#include <vector>

namespace mo = moiety;

struct tiny : mo::resized<mo::presets::mixtral_8x7b, mo::dims{.hidden = 24, .ffn = 40, .experts = 5}> {};

/// One step of a small layer: its outputs and input gradients; nothing where the schedule is unsound. Static, so that every unit has code of its own.
static std::vector<float> step() {
  mo::context<> ctx;
  mo::moe_layer<tiny> layer{ctx};
  auto weights = layer.make_weights(mo::seed{3});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(11, 24), y = ctx.matrix(11, 24), dy = ctx.matrix(11, 24), dx = ctx.matrix(11, 24);
  mo::fill_normal(ctx, x, mo::seed{1});
  mo::fill_normal(ctx, dy, mo::seed{2});
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, dy, dx, gradients);
  auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 2, .microbatches = 4});
  if (!mo::verify(mo::parse_csv(mo::to_csv(plan)))) return {};
  std::vector<float> result;
  for (auto const* m : {&y, &dx})
    for (int t = 0; t < 11; ++t)
      for (int h = 0; h < 24; ++h) result.push_back((*m)(t, h));
  return result;
}
