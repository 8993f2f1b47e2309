// SPDX-License-Identifier: Apache-2.0
// A number of experts that depends on the token (Huang et al., "Harder tasks need more experts"): the fewest, largest scores
// first, whose scores sum to Mass or more; at least one, at most Cap.
//
//   mo::router<mo::softmax, mo::top_p<8, std::ratio<2, 5>>>
//
// The scores must sum to one, as those of softmax do. Slots that are not needed stay empty, with weight 0 and no row.
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/router/selection.hpp>

#include <ratio>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <int Cap, class Mass = std::ratio<9, 10>> struct top_p {
  static constexpr std::string_view name = "top_p";
  static constexpr int count = Cap;
  static constexpr bool fills_every_slot = false, needs_probabilities = true;
  static_assert(Mass::num > 0 && Mass::num <= Mass::den, "mo::top_p needs a mass above 0 and of at most 1.");
  float mass = static_cast<float>(static_cast<double>(Mass::num) / static_cast<double>(Mass::den));

  template <score_row Row, class Chosen> MOIETY_HD void forward(Row& scores, Chosen const& chosen) const {
    using S = typename Row::value_type;
    S const enough = static_cast<S>(mass);
    S total = 0;
    scores.template largest<Cap>([&](int rank, int expert) {
      if (expert < 0 || (rank > 0 && total >= enough)) return;
      total += static_cast<S>(scores[expert]);
      chosen(rank, expert);
    });
  }

  template <class F> void for_each_value(F const& f) const { f("mass", mass); }

  /// Throws config_error for a mass that no scores have.
  void check() const {
    detail::require<config_error>(mass > 0 && mass <= 1, "the mass of mo::top_p must be above 0 and at most 1, but is ",
                                  mass, '.');
  }
};
static_assert(selection<top_p<2>>);

}  // namespace moiety
