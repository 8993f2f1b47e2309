// SPDX-License-Identifier: Apache-2.0
// The MoE blocks of gpt-oss-20b and 120b: one of 24, and of 36 layers. Tensors lie as they do in Hugging Face transformers.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/load_balance.hpp>

#include <ratio>

namespace moiety::inline MOIETY_ABI::presets {

struct gpt_oss_20b : layer_spec<dims{.hidden = 2880, .ffn = 2880, .experts = 32}> {
  using router = moiety::router<linear_bias, softmax, top_k<4>, softmax_of_selected>;
  using experts = clamped_swiglu<std::ratio<7>, biased, interleaved, in_by_out>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<gpt_oss_20b> == 796'631'072 && active_parameters<gpt_oss_20b> == 99'659'552);

struct gpt_oss_120b : layer_spec<dims{.hidden = 2880, .ffn = 2880, .experts = 128}> {
  using router = moiety::router<linear_bias, softmax, top_k<4>, softmax_of_selected>;
  using experts = clamped_swiglu<std::ratio<7>, biased, interleaved, in_by_out>;
  using losses = moiety::losses<load_balance<>>;
};
static_assert(parameters<gpt_oss_120b> == 3'186'524'288 && active_parameters<gpt_oss_120b> == 99'936'128);

}  // namespace moiety::inline MOIETY_ABI::presets
