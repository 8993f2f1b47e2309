// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/olmoe.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("olmoe_1b_7b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::olmoe_1b_7b;
  static_assert(published::composes<preset, mo::router<mo::softmax, mo::top_k<8>>, mo::gated_mlp<mo::silu>,
                                    mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>, mo::router_z>>);
  static_assert(published::has<preset>({.hidden = 2048, .ffn = 1024, .experts = 64, .slots = 8}));
  published::holds<preset>(16, 6.9e9, 93, 1.3e9, 62);
  published::trains<preset, mo::dims{.hidden = 16, .ffn = 8, .experts = 12}>();
}
