// SPDX-License-Identifier: Apache-2.0
// The MoE block of Qwen3-30B-A3B: one of 48 layers. The balance loss is taken over the global batch.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct qwen3_30b_a3b : layer_spec<dims{.hidden = 2048, .ffn = 768, .experts = 128}> {
  using router = moiety::router<softmax, top_k<8>, renormalised>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<over::global_batch>>;
};
static_assert(parameters<qwen3_30b_a3b> == 604'241'920 && active_parameters<qwen3_30b_a3b> == 38'010'880);

}  // namespace moiety::inline MOIETY_ABI::presets
