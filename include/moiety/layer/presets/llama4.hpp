// SPDX-License-Identifier: Apache-2.0
// The MoE blocks of Llama-4 Scout and Maverick: one of 48 layers, and of 24, every second of 48. The router's weight multiplies
// what the expert reads.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct llama4_scout : layer_spec<dims{.hidden = 5120, .ffn = 8192, .experts = 16}> {
  using router = moiety::router<sigmoid, top_k<1>, on_input>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<llama4_scout> == 2'139'176'960 && active_parameters<llama4_scout> == 251'740'160);

struct llama4_maverick : layer_spec<dims{.hidden = 5120, .ffn = 8192, .experts = 128}> {
  using router = moiety::router<sigmoid, top_k<1>, on_input>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<llama4_maverick> == 16'232'611'840 && active_parameters<llama4_maverick> == 252'313'600);

}  // namespace moiety::inline MOIETY_ABI::presets
