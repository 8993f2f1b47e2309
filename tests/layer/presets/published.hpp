// SPDX-License-Identifier: Apache-2.0
// A preset beside what was published of its model: the rest of a model is attention, embeddings, norms and dense layers.
#pragma once

#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include <doctest/doctest.h>

#include <cstdint>

namespace published {

/// The MoE layers hold at least `share` of the published parameters, and `active_share` of the active ones; not more than
/// all, up to the rounding of what was published.
template <class Preset> void holds(int layers, double total, double share, double active, double active_share) {
  double const all = layers * static_cast<double>(moiety::parameters<Preset>);
  double const used = layers * static_cast<double>(moiety::active_parameters<Preset>);
  CHECK(all <= 1.005 * total);
  CHECK(all >= share * total);
  CHECK(used <= 1.005 * active);
  CHECK(used >= active_share * active);
}

/// A small copy trains: gradients equal differences.
template <class Preset, moiety::dims Size> void trains() {
  using small = moiety::resized<Preset, Size>;
  for (auto const& check : moiety::testing::check_gradients<small>(13)) {
    CAPTURE(check.name);
    CHECK(check.error <= moiety::testing::gradient_tolerance);
  }
}

}  // namespace published
