// SPDX-License-Identifier: Apache-2.0
// The MoE block of Phi-3.5-MoE as it evaluates: one of 32 layers. Its training chooses at random, see router/sparsemixer.hpp.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>
#include <moiety/router/sparsemixer.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct phi_3_5_moe : layer_spec<dims{.hidden = 4096, .ffn = 6400, .experts = 16}> {
  using router = moiety::router<softmax, top_k<2>, sparsemixer<>>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<phi_3_5_moe> == 1'258'356'736 && active_parameters<phi_3_5_moe> == 157'351'936);

}  // namespace moiety::inline MOIETY_ABI::presets
