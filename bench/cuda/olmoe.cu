// SPDX-License-Identifier: Apache-2.0
#include "models.hpp"

#include "model.cuh"

#include <moiety/presets.hpp>

bool bench::measure_olmoe(options const& asked) {
  model<moiety::presets::olmoe_1b_7b> rows("olmoe", asked);
  rows.measure_all();
  return rows.finished();
}
