// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/mixtral.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("mixtral_8x7b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::mixtral_8x7b;
  published::holds<preset>(32, 46.7e9, 0.92, 12.9e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 16, .ffn = 8, .experts = 8}>();
}

TEST_CASE("mixtral_8x22b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::mixtral_8x22b;
  published::holds<preset>(56, 141e9, 0.92, 39e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}
