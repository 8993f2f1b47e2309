// SPDX-License-Identifier: Apache-2.0
// The MoE block of DBRX: one of 40 layers.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct dbrx : layer_spec<dims{.hidden = 6144, .ffn = 10752, .experts = 16}> {
  using router = moiety::router<softmax, top_k<4>, renormalised>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<dbrx> == 3'170'992'128 && active_parameters<dbrx> == 792'821'760);

}  // namespace moiety::inline MOIETY_ABI::presets
