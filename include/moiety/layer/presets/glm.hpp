// SPDX-License-Identifier: Apache-2.0
// The MoE block of GLM-4.5-Air: one of 45 layers.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct glm_4_5_air : layer_spec<dims{.hidden = 4096, .ffn = 1408, .experts = 128}> {
  using router = moiety::router<sigmoid, selection_bias, top_k<8>, renormalised>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<>;
  using losses = moiety::losses<load_balance<over::sequence>>;
};
static_assert(parameters<glm_4_5_air> == 2'232'418'304 && active_parameters<glm_4_5_air> == 156'237'824);

}  // namespace moiety::inline MOIETY_ABI::presets
