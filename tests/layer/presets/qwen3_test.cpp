// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/qwen3.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

namespace {

struct mine : mo::presets::qwen3_30b_a3b {
  using losses = mo::losses<mo::load_balance<mo::over::global_batch, mo::counts::previous_step>>;
};

}  // namespace

TEST_CASE("qwen3_30b_a3b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::qwen3_30b_a3b;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<8>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                          mo::no_shared, mo::losses<mo::load_balance<mo::over::global_batch>>>);
  static_assert(published::has<preset>({.hidden = 2048, .ffn = 768, .experts = 128, .slots = 8}));
  published::holds<preset>(48, 30.5e9, 95, 3.3e9, 55);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("qwen3_235b_a22b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::qwen3_235b_a22b;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<8>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                          mo::no_shared, mo::losses<mo::load_balance<mo::over::global_batch>>>);
  static_assert(published::has<preset>({.hidden = 4096, .ffn = 1536, .experts = 128, .slots = 8}));
  published::holds<preset>(94, 235e9, 96, 22e9, 64);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("qwen3_next_80b_a3b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::qwen3_next_80b_a3b;
  static_assert(published::composes<preset, mo::router<mo::softmax, mo::top_k<10>, mo::renormalised>,
                                    mo::gated_mlp<mo::silu>, mo::shared_experts<1, mo::sigmoid_gated>,
                                    mo::losses<mo::load_balance<mo::over::global_batch>>>);
  static_assert(published::has<preset>(
      {.hidden = 2048, .ffn = 512, .experts = 512, .slots = 10, .shared_ffn = 512, .shared_gate = true}));
  published::holds<preset>(48, 80e9, 96, 3e9, 57);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 20}>();
}

TEST_CASE("a preset's loss may name the counts of its gradient, to be trained under accumulation") {
  using published = mo::load_balance<mo::over::global_batch>;
  using named = mo::load_balance<mo::over::global_batch, mo::counts::previous_step>;
  mo::layer_options<mo::presets::qwen3_30b_a3b> const refused{.losses = {published{.coefficient = 1e-3f}}};
  mo::layer_options<mine> const trained{.losses = {named{.coefficient = 1e-3f}}};
  CHECK_THROWS_AS(refused.check_accumulation(true), mo::config_error);
  CHECK_NOTHROW(trained.check_accumulation(true));
}
