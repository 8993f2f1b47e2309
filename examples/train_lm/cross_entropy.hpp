// SPDX-License-Identifier: Apache-2.0
// Cross entropy of the next byte, as a sum over rows: −Σ log softmax(logits)[target], and its gradient
// softmax(logits) − one-hot(target). logits [T × V].
#pragma once

#include "rows.hpp"
#include "tensors.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lm {

namespace detail {

/// nats [T]. Without a gradient, rows of target −1 are left at 0.
template <class Real> struct cross_entropy_rows {
  mo::matrix_view<Real const> logits;
  std::int32_t const* targets;
  mo::matrix_view<Real> gradient;
  double* nats;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t t) const {
    Real const* const row = logits.row(t);
    std::int64_t const target = targets[t];
    if (gradient.data() == nullptr) {
      double const all = target < 0 ? 0.0 : log_sum_exp(team, row, logits.cols());
      return team.once([&] { nats[t] = target < 0 ? 0.0 : all - static_cast<double>(row[target]); });
    }
    Real* const d = gradient.row(t);
    Real const top = largest(team, row, logits.cols());
    team.columns(logits.cols(), [&](std::int64_t v) { d[v] = mo::exp(row[v] - top); });
    Real const total = sum(team, d, logits.cols()), inverse = Real{1} / total;
    team.columns(logits.cols(), [&](std::int64_t v) { d[v] = d[v] * inverse - (v == target ? Real{1} : Real{0}); });
    team.once([&] { nats[t] = mo::log(static_cast<double>(total)) + static_cast<double>(top - row[target]); });
  }
};

template <class Context>
std::vector<double> cross_entropies(Context& ctx, const_view<Context> logits, std::span<std::int32_t const> targets,
                                    view<Context> gradient) {
  std::vector<double> nats(targets.size());
  auto const bytes = static_cast<std::int64_t>(nats.size() * sizeof(double));
  mo::buffer const there(bytes, ctx.memory());
  for_rows(ctx.engine(), logits.rows(), 32,
           cross_entropy_rows<typename Context::element>{logits, targets.data(), gradient,
                                                         static_cast<double*>(there.data())});
  ctx.memory().load(nats.data(), there.data(), bytes);
  return nats;
}

}  // namespace detail

/// The cross entropy of every row in nats, and the gradient of their sum. Targets lie in memory of the back end.
template <class Context>
std::vector<double> cross_entropy(Context& ctx, const_view<Context> logits, std::span<std::int32_t const> targets,
                                  view<Context> gradient) {
  return detail::cross_entropies(ctx, logits, targets, gradient);
}

/// The cross entropy of the rows that have a target.
template <class Context>
std::vector<double> cross_entropy(Context& ctx, const_view<Context> logits, std::span<std::int32_t const> targets) {
  return detail::cross_entropies(ctx, logits, targets, view<Context>{});
}

/// The sum, each in multiples of 2⁻³²: below 2²⁰ nats it is exact, so the same bits in any order and parts, on any layout.
inline double exact_total(std::span<double const> nats) {
  double total = 0;
  for (double const n : nats) total += std::round(n * 0x1p32) * 0x1p-32;
  return total;
}

}  // namespace lm
