// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/granite.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("granite_1b_a400m is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::granite_1b_a400m;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<8>, mo::softmax_of_selected>,
                          mo::gated_mlp<mo::silu>, mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 1024, .ffn = 512, .experts = 32, .slots = 8}));
  published::holds<preset>(24, 1.33e9, 90, 0.4e9, 75);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("granite_3b_a800m is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::granite_3b_a800m;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<8>, mo::softmax_of_selected>,
                          mo::gated_mlp<mo::silu>, mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 1536, .ffn = 512, .experts = 40, .slots = 8}));
  published::holds<preset>(32, 3.37e9, 89, 0.88e9, 68);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 20}>();
}
