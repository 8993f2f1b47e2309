// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/dbrx.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("dbrx is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::dbrx;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<4>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                          mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 6144, .ffn = 10752, .experts = 16, .slots = 4}));
  published::holds<preset>(40, 132e9, 96, 36e9, 88);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 10, .experts = 16}>();
}
