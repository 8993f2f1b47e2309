// SPDX-License-Identifier: Apache-2.0
// The MoE block of LongCat-Flash: one of 28 layers. A third of the experts compute nothing, so a token's cost depends on it.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

#include <ratio>

namespace moiety::inline MOIETY_ABI::presets {

struct longcat_flash : layer_spec<dims{.hidden = 6144, .ffn = 2048, .experts = 512, .zero_experts = 256}> {
  using router = moiety::router<softmax, selection_bias, top_k<12>, scale<std::ratio<6>>>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<over::sequence>>;
};
static_assert(parameters<longcat_flash> == 19'332'071'424 && active_parameters<longcat_flash> == 457'703'424);

}  // namespace moiety::inline MOIETY_ABI::presets
