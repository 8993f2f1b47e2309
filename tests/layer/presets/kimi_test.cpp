// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/kimi.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("kimi_k2 is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::kimi_k2;
  published::holds<preset>(60, 1.04e12, 0.92, 32e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 12}>();
}
