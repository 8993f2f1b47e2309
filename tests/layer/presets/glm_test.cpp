// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/glm.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("glm_4_5_air is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::glm_4_5_air;
  published::holds<preset>(45, 106e9, 0.92, 12e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}
