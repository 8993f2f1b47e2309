// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/deepseek.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

TEST_CASE("deepseek_v2_lite is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::deepseek_v2_lite;
  static_assert(published::composes<preset, mo::router<mo::softmax, mo::top_k<6>>, mo::gated_mlp<mo::silu>,
                                    mo::shared_experts<2>, mo::losses<mo::load_balance<mo::over::sequence>>>);
  static_assert(
      published::has<preset>({.hidden = 2048, .ffn = 1408, .experts = 64, .slots = 6, .shared_ffn = 2 * 1408}));
  published::holds<preset>(26, 15.7e9, 94, 2.4e9, 75);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}

TEST_CASE("deepseek_v2 is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::deepseek_v2;
  static_assert(
      published::composes<
          preset,
          mo::router<mo::softmax, mo::groups<8, 3, mo::group_score::sum_of_largest<1>>, mo::top_k<6>,
                     mo::scale<std::ratio<16>>>,
          mo::gated_mlp<mo::silu>, mo::shared_experts<2>,
          mo::losses<mo::load_balance<mo::over::sequence>, mo::device_balance<8>, mo::communication_balance<8, 3>>>);
  static_assert(
      published::has<preset>({.hidden = 5120, .ffn = 1536, .experts = 160, .slots = 6, .shared_ffn = 2 * 1536}));
  published::holds<preset>(59, 236e9, 95, 21e9, 53);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 24}>();
}

TEST_CASE("deepseek_v3 is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::deepseek_v3;
  static_assert(published::composes<
                preset,
                mo::router<mo::sigmoid, mo::selection_bias, mo::groups<8, 4, mo::group_score::sum_of_largest<2>>,
                           mo::top_k<8>, mo::renormalised, mo::scale<std::ratio<5, 2>>>,
                mo::gated_mlp<mo::silu>, mo::shared_experts<1>, mo::losses<mo::load_balance<mo::over::sequence>>>);
  static_assert(published::has<preset>({.hidden = 7168, .ffn = 2048, .experts = 256, .slots = 8, .shared_ffn = 2048}));
  published::holds<preset>(58, 671e9, 97, 37e9, 62);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 32}>();
}

TEST_CASE("deepseek_v4_flash is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::deepseek_v4_flash;
  static_assert(published::composes<preset,
                                    mo::router<mo::sqrt_softplus, mo::selection_bias, mo::top_k<6>, mo::renormalised,
                                               mo::scale<std::ratio<3, 2>>>,
                                    mo::gated_mlp<mo::silu, mo::clamped<std::ratio<10>>>, mo::shared_experts<1>,
                                    mo::losses<mo::load_balance<mo::over::sequence>>>);
  static_assert(published::has<preset>({.hidden = 4096, .ffn = 2048, .experts = 256, .slots = 6, .shared_ffn = 2048}));
  published::holds<preset>(43, 284e9, 97, 13e9, 58);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 8, .experts = 16}>();
}
