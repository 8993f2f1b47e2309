// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/longcat.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

TEST_CASE("longcat_flash is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::longcat_flash;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::selection_bias, mo::top_k<12>, mo::scale<std::ratio<6>>>,
                          mo::gated_mlp<mo::silu>, mo::no_shared, mo::losses<mo::load_balance<mo::over::sequence>>>);
  static_assert(
      published::has<preset>({.hidden = 6144, .ffn = 2048, .experts = 512, .slots = 12, .zero_experts = 256}));
  published::holds<preset>(28, 560e9, 96, 31.3e9, 40);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16, .zero_experts = 8}>();
}
