// SPDX-License-Identifier: Apache-2.0
// The weights of SparseMixer (Liu et al., 2023; Phi-3.5-MoE) when it evaluates: each of the selected experts is weighed by a
// softmax over those that come near it.
//
//   expert e_i in slot i, m_i = z_{e_i}:   K_i = { j not in slots before i : (m_i − z_j) / max(|z_j|, m_i) ≤ 2 ε }
//   w_i = exp z_{e_i} / Σ_{K_i} exp z_j    dz_j += g_i w_i ([j = e_i] − p_ij),  p_i the softmax over K_i
//
// K has no gradient. With mo::top_k, whose slots descend, m_i is the largest logit that is left, as in the paper. Training
// by its random choice and third-order gradient is not here: these are the weights, and their own gradient.
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/router/weights.hpp>

#include <cstdint>
#include <ratio>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class Epsilon = std::ratio<1, 100>> struct sparsemixer {
  static constexpr std::string_view name = "sparsemixer";
  static constexpr weight_source source = weight_source::row;
  float epsilon = static_cast<float>(static_cast<double>(Epsilon::num) / static_cast<double>(Epsilon::den));

  template <score_row Row>
  MOIETY_HD void forward(Row const& logits, Row& scratch, std::int32_t const* ids, Row& weights) const {
    for (int slot = 0; slot < weights.size(); ++slot) {
      near(logits, ids, slot, scratch);
      weights[slot] = scratch[asked_for(ids[slot])];
    }
  }

  template <score_row Row>
  MOIETY_HD void backward(Row const& logits, Row& scratch, std::int32_t const* ids, Row const& dweights,
                          Row& dlogits) const {
    using S = typename Row::value_type;
    for (int slot = 0; slot < dweights.size(); ++slot) {
      near(logits, ids, slot, scratch);
      S const step = static_cast<S>(dweights[slot]) * static_cast<S>(scratch[asked_for(ids[slot])]);
      dlogits.map(scratch, [&](S total, S p) { return total - step * p; });
      dlogits[asked_for(ids[slot])] += step;
    }
  }

  template <class F> void for_each_value(F const& f) const { f("epsilon", epsilon); }

  /// Throws config_error for an ε that makes weights NaN.
  void check() const {
    detail::require<config_error>(epsilon >= 0 && epsilon < 1e38f,
                                  "the epsilon of mo::sparsemixer must be at least 0 and below 10^38, but is ", epsilon,
                                  '.');
  }

 private:
  /// The softmax of one slot; 0 for experts outside K.
  template <score_row Row> MOIETY_HD void near(Row const& logits, std::int32_t const* ids, int slot, Row& row) const {
    using S = typename Row::value_type;
    S const peak = logits[asked_for(ids[slot])], reach = 2 * static_cast<S>(epsilon);
    row.map(logits, [&](S, S z) {
      S const magnitude = z < 0 ? -z : z;
      S const scale = magnitude > peak ? magnitude : peak;
      return peak - z <= reach * scale ? z : -detail::infinity<S>;
    });
    for (int before = 0; before < slot; ++before) row[asked_for(ids[before])] = -detail::infinity<S>;
    S const largest = row.max();  // the peak, where slots descend
    row.map([&](S z) { return moiety::exp(z - largest); });
    S const total = row.sum();
    row.map([&](S p) { return p / total; });
  }
};
static_assert(weight_rule<sparsemixer<>>);

}  // namespace moiety
