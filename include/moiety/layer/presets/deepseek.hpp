// SPDX-License-Identifier: Apache-2.0
// The MoE blocks of DeepSeek-V2-Lite, V2, V3 and V4-Flash: one of 26, of 59, of 58 and of 43 layers.
//
// The first three layers of V4-Flash route by token id, with the same sizes:
//
//   struct by_id : presets::deepseek_v4_flash {
//     using router = mo::router<mo::sqrt_softplus, mo::hash<6>, mo::renormalised, mo::scale<std::ratio<3, 2>>>;
//   };
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/communication_balance.hpp>
#include <moiety/losses/device_balance.hpp>
#include <moiety/losses/load_balance.hpp>

#include <ratio>

namespace moiety::inline MOIETY_ABI::presets {

struct deepseek_v2_lite : layer_spec<dims{.hidden = 2048, .ffn = 1408, .experts = 64}> {
  using router = moiety::router<softmax, top_k<6>>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<2>;
  using losses = moiety::losses<load_balance<over::sequence>>;
};
static_assert(parameters<deepseek_v2_lite> == 571'080'704 && active_parameters<deepseek_v2_lite> == 69'337'088);

struct deepseek_v2 : layer_spec<dims{.hidden = 5120, .ffn = 1536, .experts = 160}> {
  using router = moiety::router<softmax, groups<8, 3, group_score::largest>, top_k<6>, scale<std::ratio<16>>>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<2>;
  using losses = moiety::losses<load_balance<over::sequence>, device_balance<8>, communication_balance<8, 3>>;
};
static_assert(parameters<deepseek_v2> == 3'822'878'720 && active_parameters<deepseek_v2> == 189'562'880);

struct deepseek_v3 : layer_spec<dims{.hidden = 7168, .ffn = 2048, .experts = 256}> {
  using router = moiety::router<sigmoid, selection_bias, groups<8, 4>, top_k<8>, renormalised, scale<std::ratio<5, 2>>>;
  using experts = gated_mlp<silu>;
  using shared = shared_experts<>;
  using losses = moiety::losses<load_balance<over::sequence>>;
};
static_assert(parameters<deepseek_v3> == 11'320'164'352 && active_parameters<deepseek_v3> == 398'196'736);

struct deepseek_v4_flash : layer_spec<dims{.hidden = 4096, .ffn = 2048, .experts = 256}> {
  using router = moiety::router<sqrt_softplus, selection_bias, top_k<6>, renormalised, scale<std::ratio<3, 2>>>;
  using experts = limited_swiglu<std::ratio<10>>;
  using shared = shared_experts<>;
  using losses = moiety::losses<load_balance<over::sequence>>;
};
static_assert(parameters<deepseek_v4_flash> == 6'468'665'344 && active_parameters<deepseek_v4_flash> == 177'209'344);

}  // namespace moiety::inline MOIETY_ABI::presets
