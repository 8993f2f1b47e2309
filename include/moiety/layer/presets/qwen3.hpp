// SPDX-License-Identifier: Apache-2.0
// The MoE blocks of Qwen3-30B-A3B, Qwen3-235B-A22B and Qwen3-Next-80B-A3B: one of 48, of 94 and of 48 layers. The balance
// loss is taken over the global batch.
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

struct qwen3_235b_a22b : layer_spec<dims{.hidden = 4096, .ffn = 1536, .experts = 128}> {
  using router = moiety::router<softmax, top_k<8>, renormalised>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<over::global_batch>>;
};
static_assert(parameters<qwen3_235b_a22b> == 2'416'443'392 && active_parameters<qwen3_235b_a22b> == 151'519'232);

struct qwen3_next_80b_a3b : layer_spec<dims{.hidden = 2048, .ffn = 512, .experts = 512}> {
  using router = moiety::router<softmax, top_k<10>, renormalised>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<1, sigmoid_gated>;
  using losses = moiety::losses<load_balance<over::global_batch>>;
};
static_assert(parameters<qwen3_next_80b_a3b> == 1'614'809'088 && active_parameters<qwen3_next_80b_a3b> == 35'653'632);

}  // namespace moiety::inline MOIETY_ABI::presets
