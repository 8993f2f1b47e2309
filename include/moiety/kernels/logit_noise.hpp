// SPDX-License-Identifier: Apache-2.0
// Noise on the logits of a router, and its gradient; noise is a role as mo::logit_noise. a, z, da [T × E], sum type.
//
//   add_logit_noise        z_te ← z_te + ε_te σ(a_te)
//   logit_noise_gradient   da_te = (dz_te ε_te + dσ_te) σ'(a_te), and 0 of a token that is not routed
//
// dσ is what da holds before, where it is given, else 0. a is not read where the noise is not learned.
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/backend/host.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {

/// One value of noise, as every back end has it.
template <class Noise, class S> struct logit_noise_of {
  Noise noise;
  token_table tokens;
  matrix_view<S const> a;

  MOIETY_HD S draw(std::int64_t t, std::int64_t e, std::int64_t experts) const {
    return noise.template draw<S>(tokens.first_row + t, tokens.moment(), e, experts);
  }
  MOIETY_HD S deviation(std::int64_t t, std::int64_t e) const {
    return noise.deviation(Noise::is_learned ? a.row(t)[e] : S{0});
  }
  MOIETY_HD S noisy(std::int64_t t, std::int64_t e, std::int64_t experts, S z) const {
    return fma(draw(t, e, experts), deviation(t, e), z);
  }
  MOIETY_HD S gradient(std::int64_t t, std::int64_t e, std::int64_t experts, S dz, S ddeviation) const {
    return fma(dz, draw(t, e, experts), ddeviation) * noise.slope(a.row(t)[e]);
  }
};

}  // namespace detail

template <class Noise, class S>
void add_logit_noise(host_engine& engine, Noise const& noise, token_table const& tokens, matrix_view<S const> a,
                     matrix_view<S> z) {
  detail::logit_noise_of<Noise, S> const of{noise, tokens, a};
  engine.for_blocks(z.rows(), 16, [&](std::int64_t t, std::int64_t end, int) {
    for (; t < end; ++t)
      for (std::int64_t e = 0; e < z.cols(); ++e) z.row(t)[e] = of.noisy(t, e, z.cols(), z.row(t)[e]);
  });
}

template <class Noise, class S>
void logit_noise_gradient(host_engine& engine, Noise const& noise, token_table const& tokens, token_state const* states,
                          matrix_view<S const> a, matrix_view<S const> dz, matrix_view<S> da, bool adds) {
  detail::logit_noise_of<Noise, S> const of{noise, tokens, a};
  engine.for_blocks(da.rows(), 16, [&](std::int64_t t, std::int64_t end, int) {
    for (; t < end; ++t)
      for (std::int64_t e = 0; e < da.cols(); ++e) {
        S& to = da.row(t)[e];
        to = states[t] == token_state::routed ? of.gradient(t, e, da.cols(), dz.row(t)[e], adds ? to : S{0}) : S{0};
      }
  });
}

template <class Noise, class S>
void add_logit_noise(cuda_engine& engine, Noise const& noise, token_table const& tokens, matrix_view<S const> a,
                     matrix_view<S> z);

template <class Noise, class S>
void logit_noise_gradient(cuda_engine& engine, Noise const& noise, token_table const& tokens, token_state const* states,
                          matrix_view<S const> a, matrix_view<S const> dz, matrix_view<S> da, bool adds);

}  // namespace moiety::inline MOIETY_ABI::kernels
