// SPDX-License-Identifier: Apache-2.0
// The MoE block of Qwen1.5-MoE-A2.7B: one of 24 layers. Every token passes a shared expert of 5632 units behind a gate.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct qwen1_5_moe_a2_7b : layer_spec<dims{.hidden = 2048, .ffn = 1408, .experts = 60}> {
  using router = moiety::router<softmax, top_k<4>>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<1, shared_ffn<5632>, sigmoid_gated>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<qwen1_5_moe_a2_7b> == 553'773'056 && active_parameters<qwen1_5_moe_a2_7b> == 69'330'944);

}  // namespace moiety::inline MOIETY_ABI::presets
