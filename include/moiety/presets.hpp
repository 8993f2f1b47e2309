// SPDX-License-Identifier: Apache-2.0
// Specs of published models, in the namespace mo::presets. Derive from one to change a role; mo::resized changes sizes.
#pragma once

#include <moiety/layer/presets/dbrx.hpp>
#include <moiety/layer/presets/deepseek.hpp>
#include <moiety/layer/presets/glm.hpp>
#include <moiety/layer/presets/gpt_oss.hpp>
#include <moiety/layer/presets/granite.hpp>
#include <moiety/layer/presets/kimi.hpp>
#include <moiety/layer/presets/llama4.hpp>
#include <moiety/layer/presets/longcat.hpp>
#include <moiety/layer/presets/mixtral.hpp>
#include <moiety/layer/presets/olmoe.hpp>
#include <moiety/layer/presets/phi.hpp>
#include <moiety/layer/presets/qwen2.hpp>
#include <moiety/layer/presets/qwen3.hpp>
