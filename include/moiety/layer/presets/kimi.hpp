// SPDX-License-Identifier: Apache-2.0
// The MoE block of Kimi-K2: one of 60 layers, that of DeepSeek-V3 with more experts and without groups.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

#include <ratio>

namespace moiety::inline MOIETY_ABI::presets {

struct kimi_k2 : layer_spec<dims{.hidden = 7168, .ffn = 2048, .experts = 384}> {
  using router = moiety::router<sigmoid, selection_bias, top_k<8>, renormalised, scale<std::ratio<2827, 1000>>>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<>;
  using losses = moiety::losses<load_balance<over::sequence>>;
};
static_assert(parameters<kimi_k2> == 16'958'226'432 && active_parameters<kimi_k2> == 399'114'240);

}  // namespace moiety::inline MOIETY_ABI::presets
