// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/dbrx.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("dbrx is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::dbrx;
  published::holds<preset>(40, 132e9, 0.92, 36e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 10, .experts = 16}>();
}
