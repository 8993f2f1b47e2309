// SPDX-License-Identifier: Apache-2.0
// The MoE blocks of Granite 3 1B-A400M and 3B-A800M: one of 24, and of 32 layers.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct granite_1b_a400m : layer_spec<dims{.hidden = 1024, .ffn = 512, .experts = 32}> {
  using router = moiety::router<softmax, top_k<8>, softmax_of_selected>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<granite_1b_a400m> == 50'364'416 && active_parameters<granite_1b_a400m> == 12'615'680);

struct granite_3b_a800m : layer_spec<dims{.hidden = 1536, .ffn = 512, .experts = 40}> {
  using router = moiety::router<softmax, top_k<8>, softmax_of_selected>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<granite_3b_a800m> == 94'433'280 && active_parameters<granite_3b_a800m> == 18'935'808);

}  // namespace moiety::inline MOIETY_ABI::presets
