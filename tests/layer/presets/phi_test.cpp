// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/phi.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("phi_3_5_moe is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::phi_3_5_moe;
  published::holds<preset>(32, 41.9e9, 0.92, 6.6e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}
