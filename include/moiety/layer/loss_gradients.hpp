// SPDX-License-Identifier: Apache-2.0
// What the trained losses of a layer add to one token's rows, on any back end:
//
//   Σ over losses of  loss_scale · coefficient · weight of the token's unit · ∂value     see losses/loss.hpp
//
// A loss without a coefficient adds nothing. OfChances are the losses that need expected loads, see losses/loss.hpp.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/config.hpp>
#include <moiety/layer/spec.hpp>
#include <moiety/losses/loss.hpp>

#include <concepts>
#include <cstdint>

namespace moiety::inline MOIETY_ABI {

template <class Spec, bool OfChances = false> struct loss_gradients {
  typename spec_of<Spec>::losses_type losses;
  batch_statistics units;
  double batch_weight;  // as in batch_statistics::weight
  float loss_scale;

  /// z are the logits. Rows refer to their values: dp takes what reaches a loss through the probabilities (or chances), dz
  /// the rest.
  template <score_row Row> MOIETY_HD void operator()(std::int64_t token, Row z, Row dp, Row dz) const {
    losses.for_each([&]<class Loss>(Loss const& loss) {
      if (needs_expected_loads<Loss> != OfChances || loss.coefficient == 0) return;
      bool const by_sequence = std::same_as<typename Loss::unit, over::sequence>;
      std::int64_t const unit = by_sequence ? units.sequence_of(token) : 0;
      double const factor =
          static_cast<double>(loss.coefficient) * static_cast<double>(loss_scale) * units.weight(unit, batch_weight);
      using S = typename Row::value_type;
      if (factor != 0) loss.token_gradient(units.unit(unit), static_cast<S>(factor), z, dp, dz);
    });
  }
};

}  // namespace moiety
