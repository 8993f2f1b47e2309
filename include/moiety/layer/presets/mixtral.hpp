// SPDX-License-Identifier: Apache-2.0
// The MoE blocks of Mixtral 8x7B and 8x22B: one of 32, and of 56 layers.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

namespace moiety::inline MOIETY_ABI::presets {

struct mixtral_8x7b : layer_spec<dims{.hidden = 4096, .ffn = 14336, .experts = 8}> {
  using router = moiety::router<softmax, top_k<2>, renormalised>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<mixtral_8x7b> == 1'409'318'912 && active_parameters<mixtral_8x7b> == 352'354'304);

struct mixtral_8x22b : layer_spec<dims{.hidden = 6144, .ffn = 16384, .experts = 8}> {
  using router = moiety::router<softmax, top_k<2>, renormalised>;
  using experts = gated_mlp<silu>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<mixtral_8x22b> == 2'415'968'256 && active_parameters<mixtral_8x22b> == 604'028'928);

}  // namespace moiety::inline MOIETY_ABI::presets
