// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/llama4.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("llama4_scout is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::llama4_scout;
  static_assert(
      published::composes<preset, mo::router<mo::sigmoid, mo::top_k<1>, mo::on_input>, mo::gated_mlp<mo::silu>,
                          mo::shared_experts<1>, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 5120, .ffn = 8192, .experts = 16, .slots = 1, .shared_ffn = 8192}));
  published::holds<preset>(48, 109e9, 94, 17e9, 71);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}

TEST_CASE("llama4_maverick is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::llama4_maverick;
  static_assert(
      published::composes<preset, mo::router<mo::sigmoid, mo::top_k<1>, mo::on_input>, mo::gated_mlp<mo::silu>,
                          mo::shared_experts<1>, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 5120, .ffn = 8192, .experts = 128, .slots = 1, .shared_ffn = 8192}));
  published::holds<preset>(24, 400e9, 97, 17e9, 35);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}
