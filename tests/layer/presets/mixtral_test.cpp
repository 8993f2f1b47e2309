// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/mixtral.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("mixtral_8x7b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::mixtral_8x7b;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                          mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 4096, .ffn = 14336, .experts = 8, .slots = 2}));
  published::holds<preset>(32, 46.7e9, 96, 12.9e9, 87);
  published::trains<preset, mo::dims{.hidden = 16, .ffn = 8, .experts = 8}>();
}

TEST_CASE("mixtral_8x22b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::mixtral_8x22b;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                          mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 6144, .ffn = 16384, .experts = 8, .slots = 2}));
  published::holds<preset>(56, 141e9, 95, 39e9, 86);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}
