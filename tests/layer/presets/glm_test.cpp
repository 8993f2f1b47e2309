// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/glm.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("glm_4_5_air is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::glm_4_5_air;
  static_assert(published::composes<preset, mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<8>, mo::renormalised>,
                                    mo::gated_mlp<mo::silu>, mo::shared_experts<1>,
                                    mo::losses<mo::load_balance<mo::over::sequence>>>);
  static_assert(published::has<preset>({.hidden = 4096, .ffn = 1408, .experts = 128, .slots = 8, .shared_ffn = 1408}));
  published::holds<preset>(45, 106e9, 94, 12e9, 58);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}
