// SPDX-License-Identifier: Apache-2.0
// One translation unit a model, and one for SonicMoE's ten shapes. False where time ran out before the last row.
#pragma once

namespace bench {
struct options;
bool measure_qwen3(options const& asked);
bool measure_olmoe(options const& asked);
bool measure_mixtral(options const& asked);
bool measure_sonic(options const& asked);
}  // namespace bench
