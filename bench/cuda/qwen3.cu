// SPDX-License-Identifier: Apache-2.0
#include "models.hpp"

#include "model.cuh"

#include <moiety/presets.hpp>

bool bench::measure_qwen3(options const& asked) {
  model<moiety::presets::qwen3_30b_a3b> rows("qwen3", asked);
  rows.measure_all();
  return rows.finished();
}
