// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/kimi.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

TEST_CASE("kimi_k2 is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::kimi_k2;
  static_assert(published::composes<preset,
                                    mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<8>, mo::renormalised,
                                               mo::scale<std::ratio<2827, 1000>>>,
                                    mo::gated_mlp<mo::silu>, mo::shared_experts<1>,
                                    mo::losses<mo::load_balance<mo::over::sequence>>>);
  static_assert(published::has<preset>({.hidden = 7168, .ffn = 2048, .experts = 384, .slots = 8, .shared_ffn = 2048}));
  published::holds<preset>(60, 1.04e12, 97, 32e9, 74);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 12}>();
}
