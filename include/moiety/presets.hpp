// SPDX-License-Identifier: Apache-2.0
// Specs of published models, in the namespace mo::presets. Derive from one to change a role; mo::resized changes sizes.
#pragma once

#include <moiety/layer/presets/mixtral.hpp>
#include <moiety/layer/presets/olmoe.hpp>
#include <moiety/layer/presets/qwen3.hpp>
