// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/llama4.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("llama4_scout is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::llama4_scout;
  published::holds<preset>(48, 109e9, 0.92, 17e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}

TEST_CASE("llama4_maverick is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::llama4_maverick;
  published::holds<preset>(24, 400e9, 0.92, 17e9, 0.3);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}
