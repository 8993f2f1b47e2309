// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/olmoe.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("olmoe_1b_7b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::olmoe_1b_7b;
  published::holds<preset>(16, 6.9e9, 0.9, 1.3e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 16, .ffn = 8, .experts = 12}>();
}
