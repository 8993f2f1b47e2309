// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/qwen2.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("qwen1_5_moe_a2_7b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::qwen1_5_moe_a2_7b;
  static_assert(published::composes<preset, mo::router<mo::softmax, mo::top_k<4>>, mo::gated_mlp<mo::silu>,
                                    mo::shared_experts<1, mo::shared_ffn<5632>, mo::sigmoid_gated>,
                                    mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>(
      {.hidden = 2048, .ffn = 1408, .experts = 60, .slots = 4, .shared_ffn = 5632, .shared_gate = true}));
  published::holds<preset>(24, 14.3e9, 92, 2.7e9, 61);
  published::trains<preset, mo::dims{.hidden = 16, .ffn = 8, .experts = 60}>();
}
