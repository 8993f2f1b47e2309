// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/phi.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

TEST_CASE("phi_3_5_moe is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::phi_3_5_moe;
  static_assert(
      published::composes<preset, mo::router<mo::softmax, mo::top_k<2>, mo::sparsemixer<std::ratio<1, 100>>>,
                          mo::gated_mlp<mo::silu>, mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 4096, .ffn = 6400, .experts = 16, .slots = 2}));
  published::holds<preset>(32, 41.9e9, 96, 6.6e9, 76);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}
