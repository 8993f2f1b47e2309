// SPDX-License-Identifier: Apache-2.0
#include "models.hpp"

#include "model.cuh"

#include <moiety/presets.hpp>

bool bench::measure_mixtral(options const& asked) {
  model<moiety::presets::mixtral_8x7b> rows("mixtral", asked);
  rows.measure_all();
  return rows.finished();
}
