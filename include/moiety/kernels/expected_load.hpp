// SPDX-License-Identifier: Apache-2.0
// The load of experts that is to be expected under the noise of logits, and its gradient: L_e = Σ_t P_te, with P as in
// expected_load_row.hpp. z̃, a, dz, dσ [T × E], sum type; noise is a role as mo::logit_noise, a is not read where it is not
// learned. k is that of the routing; tokens that are not routed take no part.
//
//   add_expected_loads        L of each unit's tokens, exact, into statistics that have room for it and hold 0;
//                             after accumulate
//   expected_load_gradient    dz̃ += what reaches it through P and through dz; dσ = what reaches σ beside, where z̃ is held.
//                             add_losses(token, z̃, dP, dz) gives what losses add to a token's rows, of which dP starts
//                             at 0 and dz at what is there. dσ may be null; it is 0 of a token that is not routed
#pragma once

#include <moiety/backend/backend.hpp>
#include <moiety/backend/host.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/normal_cdf.hpp>
#include <moiety/kernels/expected_load_row.hpp>
#include <moiety/kernels/host/route.hpp>
#include <moiety/kernels/host/scratch.hpp>
#include <moiety/kernels/logit_noise.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {

/// Noise of one token: ε and σ of its experts.
template <class Noise, class S, score_row Row>
MOIETY_HD void load_noise(logit_noise_of<Noise, S> const& of, std::int64_t t, Row& draws, Row& deviation) {
  std::int64_t const experts = draws.size();
  draws.map_indexed([&](S, int e) { return of.draw(t, e, experts); });
  deviation.map_indexed([&](S, int e) { return of.deviation(t, e); });
}

}  // namespace detail

/// Experts: their number where it is a constant, of no matter here.
template <class Noise, class S, int Experts = 0>
void add_expected_loads(host_engine& engine, Noise const& noise, token_table const& tokens, routing_view<S> routing,
                        matrix_view<S const> a, matrix_view<S const> noisy, batch_statistics const& into) {
  std::int64_t const experts = noisy.cols();
  detail::logit_noise_of<Noise, S> const of{noise, tokens, a};
  std::mutex merging;
  auto const add_tokens = [&](std::int64_t begin, std::int64_t end, statistics_view const& unit, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> margins = scratch.row<S>(experts), draws = scratch.row<S>(experts), deviation = scratch.row<S>(experts),
                left = scratch.row<S>(experts);
    std::span<exact_sum> const sums = scratch.take<exact_sum>(experts);
    for (std::int64_t t = begin; t < end; ++t) {
      if (routing.states[t] != token_state::routed) continue;
      std::copy_n(noisy.row(t), experts, margins.data());
      detail::load_noise(of, t, draws, deviation);
      detail::to_margins(margins, deviation, detail::load_thresholds<S>(margins, left, routing.slots));
      detail::to_chances(margins, draws);
      for (std::size_t e = 0; e < sums.size(); ++e) sums[e].add(normal_cdf(static_cast<double>(margins.data()[e])));
    }
    std::scoped_lock const lock(merging);
    for (std::size_t e = 0; e < sums.size(); ++e) unit.expected_loads[e] += sums[e];
  };
  engine.for_blocks(noisy.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    detail::for_units(into, begin, end, [&](std::int64_t first, std::int64_t last, std::int64_t unit) {
      add_tokens(first, last, into.unit(unit), worker);
    });
  });
  for (std::int64_t u = 1; u < into.count; ++u)
    for (std::size_t e = 0; e < static_cast<std::size_t>(experts); ++e)
      into.unit(0).expected_loads[e] += into.unit(u).expected_loads[e];
}

template <class Noise, class S, int Experts = 0, class AddLosses>
void expected_load_gradient(host_engine& engine, Noise const& noise, token_table const& tokens, routing_view<S> routing,
                            matrix_view<S const> a, matrix_view<S const> noisy, AddLosses const& add_losses,
                            matrix_view<S> dlogits, matrix_view<S> ddeviation) {
  std::int64_t const experts = noisy.cols();
  detail::logit_noise_of<Noise, S> const of{noise, tokens, a};
  engine.for_blocks(noisy.rows(), detail::tokens_per_task, [&](std::int64_t begin, std::int64_t end, int worker) {
    scratch_memory scratch(engine.scratch(worker));
    span_row<S> row = scratch.row<S>(experts), draws = scratch.row<S>(experts), deviation = scratch.row<S>(experts),
                gradient = scratch.row<S>(experts), left = scratch.row<S>(experts);
    for (std::int64_t t = begin; t < end; ++t) {
      gradient.map([](S) { return S{0}; });
      if (routing.states[t] == token_state::routed) {
        span_row<S> dz(dlogits.row(t), experts);
        std::copy_n(noisy.row(t), experts, row.data());
        detail::load_noise(of, t, draws, deviation);
        add_losses(t, row, gradient, dz);
        detail::chance_gradient(row, draws, deviation, routing.slots, gradient, dz, left);
      }
      if (ddeviation.data() != nullptr) std::copy_n(gradient.data(), experts, ddeviation.row(t));
    }
  });
}

template <class Noise, class S, int Experts = 0>
void add_expected_loads(cuda_engine& engine, Noise const& noise, token_table const& tokens, routing_view<S> routing,
                        matrix_view<S const> a, matrix_view<S const> noisy, batch_statistics const& into);

template <class Noise, class S, int Experts = 0, class AddLosses>
void expected_load_gradient(cuda_engine& engine, Noise const& noise, token_table const& tokens, routing_view<S> routing,
                            matrix_view<S const> a, matrix_view<S const> noisy, AddLosses const& add_losses,
                            matrix_view<S> dlogits, matrix_view<S> ddeviation);

}  // namespace moiety::inline MOIETY_ABI::kernels
