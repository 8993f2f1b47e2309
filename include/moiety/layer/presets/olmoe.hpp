// SPDX-License-Identifier: Apache-2.0
// The MoE block of OLMoE-1B-7B: one of 16 layers. Weights are the softmax scores as they are.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>
#include <moiety/losses/router_z.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct olmoe_1b_7b : layer_spec<dims{.hidden = 2048, .ffn = 1024, .experts = 64}> {
  using router = moiety::router<softmax, top_k<8>>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<>, router_z>;
};
static_assert(parameters<olmoe_1b_7b> == 402'784'256 && active_parameters<olmoe_1b_7b> == 50'462'720);

}  // namespace moiety::inline MOIETY_ABI::presets
