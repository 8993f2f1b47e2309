// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/gpt_oss.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("gpt_oss_20b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::gpt_oss_20b;
  published::holds<preset>(24, 20.9e9, 0.9, 3.6e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}

TEST_CASE("gpt_oss_120b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::gpt_oss_120b;
  published::holds<preset>(36, 116.8e9, 0.92, 5.1e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}
