// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/presets/gpt_oss.hpp>

#include "layer/presets/published.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

TEST_CASE("gpt_oss_20b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::gpt_oss_20b;
  static_assert(
      published::composes<preset, mo::router<mo::linear_bias, mo::softmax, mo::top_k<4>, mo::softmax_of_selected>,
                          mo::gated_mlp<mo::gelu_quick, mo::clamped<std::ratio<7>>, mo::up_offset<std::ratio<1>>,
                                        mo::biased, mo::interleaved, mo::in_by_out>,
                          mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 2880, .ffn = 2880, .experts = 32, .slots = 4, .biases = true}));
  published::holds<preset>(24, 20.9e9, 91, 3.6e9, 66);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}

TEST_CASE("gpt_oss_120b is composed as published, holds its part of the model, and trains when made small") {
  using preset = mo::presets::gpt_oss_120b;
  static_assert(
      published::composes<preset, mo::router<mo::linear_bias, mo::softmax, mo::top_k<4>, mo::softmax_of_selected>,
                          mo::gated_mlp<mo::gelu_quick, mo::clamped<std::ratio<7>>, mo::up_offset<std::ratio<1>>,
                                        mo::biased, mo::interleaved, mo::in_by_out>,
                          mo::no_shared, mo::losses<mo::load_balance<mo::over::micro_batch>>>);
  static_assert(published::has<preset>({.hidden = 2880, .ffn = 2880, .experts = 128, .slots = 4, .biases = true}));
  published::holds<preset>(36, 116.8e9, 98, 5.1e9, 70);
  published::trains<preset, mo::dims{.hidden = 12, .ffn = 10, .experts = 8}>();
}
