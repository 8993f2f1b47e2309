// SPDX-License-Identifier: Apache-2.0
// Noise on the logits of a layer's router, in training (noisy top-k gating: Shazeer et al., arXiv 1701.06538, eq. 3 to 5):
//
//   z̃_te = z_te + ε_te σ_te        ε standard normal, a function of (key, step, layer, the token's place, e)
//
//   logit_noise             σ = log(1 + exp a) + floor,  a = x W_noiseᵀ     W_noise [E × H] is "router.noise"
//   constant_logit_noise    σ = deviation                                   as Tutel, whose deviation is gate_noise / E
//
//   mo::router<mo::logit_noise, mo::softmax, mo::top_k<2>, mo::renormalised>      gate of the paper, but for ties
//
// Everything behind sees z̃: scores, selection, weights, probabilities and router_z. infer routes by z and has no second
// product, so its y is not that of forward. W_noise starts at 0, where σ is log 2 + floor; both products take the same x,
// with its jitter where there is one. a [T × E] is saved, noise is drawn again:
//
//   dz = dz̃,  da = dz̃ ε / (1 + exp(−a)),  dx = dz W + da W_noise,  dW_noise = Σ_t da_tᵀ x_t
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/random.hpp>

#include <cstdint>
#include <ratio>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

namespace detail {

inline constexpr std::uint64_t logit_noise_stream = stream_of("router.logit_noise");

/// ε of expert e of `experts`; `moment` is that of batch/token.hpp.
template <class S>
MOIETY_HD S logit_draw(seed key, std::int64_t logical, std::int64_t moment, std::int64_t e, std::int64_t experts) {
  return static_cast<S>(normal(key, logit_noise_stream + static_cast<std::uint64_t>(moment),
                               static_cast<std::uint64_t>(logical * experts + e)));
}

inline void check_deviation(std::string_view what, float value) {
  require<config_error>(value > 0 && is_finite(value), "the ", what, " must be finite and above 0, but is ", value,
                        '.');
}

}  // namespace detail

struct logit_noise {
  static constexpr std::string_view name = "logit_noise";
  static constexpr bool is_learned = true;
  float floor = 1e-2f;
  seed key{0};

  template <class S>
  MOIETY_HD S draw(std::int64_t logical, std::int64_t moment, std::int64_t e, std::int64_t experts) const {
    return detail::logit_draw<S>(key, logical, moment, e, experts);
  }
  template <class S> MOIETY_HD S deviation(S a) const {
    S const rest = moiety::log1p(moiety::exp(a > 0 ? -a : a));
    return (a > 0 ? a + rest : rest) + static_cast<S>(floor);
  }
  /// ∂σ/∂a
  template <class S> MOIETY_HD S slope(S a) const { return moiety::logistic(a); }

  template <class F> void for_each_value(F const& f) const { f("floor", floor), f("key", key.value); }

  /// Throws config_error for a floor that can never work.
  void check() const { detail::check_deviation("floor of mo::logit_noise", floor); }
};

template <class Deviation = std::ratio<1>> struct constant_logit_noise {
  static constexpr std::string_view name = "constant_logit_noise";
  static constexpr bool is_learned = false;
  float value = static_cast<float>(static_cast<double>(Deviation::num) / static_cast<double>(Deviation::den));
  seed key{0};

  template <class S>
  MOIETY_HD S draw(std::int64_t logical, std::int64_t moment, std::int64_t e, std::int64_t experts) const {
    return detail::logit_draw<S>(key, logical, moment, e, experts);
  }
  template <class S> MOIETY_HD S deviation(S) const { return static_cast<S>(value); }

  template <class F> void for_each_value(F const& f) const { f("value", value), f("key", key.value); }

  void check() const { detail::check_deviation("value of mo::constant_logit_noise", value); }
};

template <class T> inline constexpr bool is_logit_noise = false;
template <> inline constexpr bool is_logit_noise<logit_noise> = true;
template <class Deviation> inline constexpr bool is_logit_noise<constant_logit_noise<Deviation>> = true;

}  // namespace moiety
