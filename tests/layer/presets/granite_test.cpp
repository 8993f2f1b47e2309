// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/granite.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("granite_1b_a400m is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::granite_1b_a400m;
  published::holds<preset>(24, 1.33e9, 0.9, 0.4e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("granite_3b_a800m is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::granite_3b_a800m;
  published::holds<preset>(32, 3.37e9, 0.85, 0.88e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 20}>();
}
