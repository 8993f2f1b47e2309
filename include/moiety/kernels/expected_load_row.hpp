// SPDX-License-Identifier: Apache-2.0
// How likely a token's experts are to be among its k if the noise of each were drawn again, that of the others kept
// (Shazeer et al., arXiv 1701.06538, eq. 8 and 9), on every back end. Of one token with z̃ = z + ε σ:
//
//   P_e = Φ((z_e − ψ_e) / σ_e) = Φ(m_e − ε_e),  m_e = (z̃_e − ψ_e) / σ_e
//
// ψ_e is the k-th largest z̃ of the other experts: the (k + 1)-th largest of all for an expert among the k, the k-th for
// another; of equal z̃ the lower index counts as larger. With k = E there is none, and P_e = 1. m is held to ±64, beyond
// which P is 0 or 1 to the last bit.
//
//   load_thresholds(z̃, scratch, k)   what ψ_e is and whose z̃, for each e
//   to_margins                       z̃ ← m
//   to_chances                       m ← m − ε, whose Φ is P
//   chance_gradient                  with g = ∂/∂P: dz̃_e += g_e φ(m_e − ε_e) / σ_e =: g'_e, taken again from the expert
//                                    whose z̃ is ψ_e; g becomes that of σ where z̃ is held, −g'_e m_e
#pragma once

#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::detail {

template <class S> class load_thresholds {
 public:
  /// `scratch` has room for E values.
  template <score_row Row> MOIETY_HD load_thresholds(Row const& noisy, Row& scratch, std::int64_t slots) {
    scratch.map(noisy, [](S, S z) { return z; });
    for (std::int64_t rank = 0; rank <= slots; ++rank) {
      last_ = next_, last_expert_ = next_expert_;
      next_ = scratch.max(), next_expert_ = scratch.argmax();
      scratch.remove(next_expert_);
    }
  }

  /// Whether an expert is among the k.
  MOIETY_HD bool has(S z, int e) const { return z > last_ || (z == last_ && e <= last_expert_); }
  MOIETY_HD S of(S z, int e) const { return has(z, e) ? next_ : last_; }
  /// Whose z̃ it is for those among the k, −1 where there is none, and for the others.
  MOIETY_HD int next_expert() const { return next_expert_; }
  MOIETY_HD int last_expert() const { return last_expert_; }

 private:
  S last_ = 0, next_ = 0;  // the k-th largest and the one behind it; −∞ where there is none
  int last_expert_ = -1, next_expert_ = -1;
};

template <score_row Row, class S>
MOIETY_HD void to_margins(Row& noisy, Row const& deviation, load_thresholds<S> const& thresholds) {
  constexpr S most = 64;
  noisy.map_indexed([&](S z, int e) { return z - thresholds.of(z, e); });
  noisy.map(deviation, [](S above, S sigma) {
    S const m = above / sigma;
    return m > most ? most : (m < -most ? -most : m);
  });
}

template <score_row Row> MOIETY_HD void to_chances(Row& margins, Row const& draws) {
  margins.map(draws, [](auto m, auto epsilon) { return m - epsilon; });
}

/// `noisy`, `deviation` and `scratch` are used up.
template <score_row Row>
MOIETY_HD void chance_gradient(Row& noisy, Row const& draws, Row& deviation, std::int64_t slots, Row& gradient,
                               Row& dlogits, Row& scratch) {
  using S = typename Row::value_type;
  constexpr S inverse_root_of_two_pi = static_cast<S>(0.398942280401432677939946);
  load_thresholds<S> const thresholds(noisy, scratch, slots);
  scratch.map(noisy, [](S, S z) { return z; });
  scratch.map_indexed([&](S z, int e) { return thresholds.has(z, e) ? S{1} : S{0}; });
  to_margins(noisy, deviation, thresholds);
  gradient.map(deviation, [](S g, S sigma) { return g / sigma; });
  deviation.map(noisy, [](S, S m) { return m; });
  to_chances(deviation, draws);
  gradient.map(deviation, [](S g, S v) { return g * (inverse_root_of_two_pi * moiety::exp(v * v / -2)); });
  dlogits.map(gradient, [](S old, S g) { return old + g; });
  S const of_the_k = scratch.dot(gradient);
  scratch.map([](S v) { return 1 - v; });
  S const of_others = scratch.dot(gradient);
  if (thresholds.next_expert() >= 0) dlogits[thresholds.next_expert()] += -of_the_k;
  dlogits[thresholds.last_expert()] += -of_others;
  gradient.map(noisy, [](S g, S m) { return -g * m; });
}

}  // namespace moiety::inline MOIETY_ABI::kernels::detail
