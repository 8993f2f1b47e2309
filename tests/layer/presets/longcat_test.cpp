// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/longcat.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("longcat_flash is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::longcat_flash;
  published::holds<preset>(28, 560e9, .92, 31.3e9, .4);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16, .zero_experts = 8}>();
}
