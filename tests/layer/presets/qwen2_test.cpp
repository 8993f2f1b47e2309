// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/qwen2.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("qwen1_5_moe_a2_7b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::qwen1_5_moe_a2_7b;
  published::holds<preset>(24, 14.3e9, 0.9, 2.7e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 16, .ffn = 8, .experts = 60}>();
}
