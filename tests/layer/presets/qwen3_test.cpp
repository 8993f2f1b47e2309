// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/qwen3.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

TEST_CASE("qwen3_30b_a3b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::qwen3_30b_a3b;
  published::holds<preset>(48, 30.5e9, 0.92, 3.3e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("qwen3_235b_a22b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::qwen3_235b_a22b;
  published::holds<preset>(94, 235e9, 0.92, 22e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("qwen3_next_80b_a3b is the MoE part of the published model, and trains when it is made small") {
  using preset = moiety::presets::qwen3_next_80b_a3b;
  published::holds<preset>(48, 80e9, 0.92, 3e9, 0.5);
  published::trains<preset, moiety::dims{.hidden = 12, .ffn = 8, .experts = 20}>();
}
