// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/deepseek.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("deepseek_v2_lite is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::deepseek_v2_lite;
  published::holds<preset>(26, 15.7e9, 0.9, 2.4e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("deepseek_v2 is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::deepseek_v2;
  published::holds<preset>(59, 236e9, 0.92, 21e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 24}>();
}

TEST_CASE("deepseek_v3 is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::deepseek_v3;
  published::holds<preset>(58, 671e9, 0.92, 37e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 32}>();
}

TEST_CASE("deepseek_v4_flash is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::deepseek_v4_flash;
  published::holds<preset>(43, 284e9, 0.92, 13e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}
