// SPDX-License-Identifier: Apache-2.0
// Root mean square norm (Zhang and Sennrich 2019):
//
//   y = g ⊙ x · r,   r = 1 / √(mean(x²) + ε)
//
// x, y [T × H], g [1 × H], r [T × 1]. Backward, with n = x · r:
//
//   dx = base + r (g ⊙ dy − n · mean(g ⊙ dy ⊙ n)),  dg += Σ dy ⊙ n
//
// where base is the residual stream's gradient, or none.
#pragma once

#include "rows.hpp"
#include "tensors.hpp"

#include <cstdint>

namespace lm {

namespace detail {

template <class Real> struct normed_rows {
  mo::matrix_view<Real const> x, g;
  mo::matrix_view<Real> y, inverse;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t t) const {
    constexpr Real epsilon = static_cast<Real>(1e-5);
    Real const *const in = x.row(t), *const gain = g.data();
    Real* const out = y.row(t);
    Real const mean = dot(team, in, in, x.cols()) / static_cast<Real>(x.cols());
    Real const r = Real{1} / mo::sqrt(mean + epsilon);
    team.columns(x.cols(), [&](std::int64_t h) { out[h] = in[h] * r * gain[h]; });
    team.once([&] { inverse.row(t)[0] = r; });
  }
};

template <class Real> struct norm_gradient_rows {
  mo::matrix_view<Real const> x, g, inverse, dy, base;
  mo::matrix_view<Real> dx;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t t) const {
    Real const *const in = x.row(t), *const d = dy.row(t), *const gain = g.data();
    Real const* const from = base.data() != nullptr ? base.row(t) : nullptr;
    Real* const out = dx.row(t);
    auto const project = [&](Real s, std::int64_t h) { return mo::fma(gain[h] * d[h], in[h], s); };
    Real const projected = team.reduce(x.cols(), Real{0}, project, plus{});
    Real const r = inverse.row(t)[0];
    Real const along = -projected * r * r / static_cast<Real>(x.cols());
    team.columns(x.cols(), [&](std::int64_t h) {
      Real const across = mo::fma(in[h], along, gain[h] * d[h]);
      out[h] = from != nullptr ? mo::fma(r, across, from[h]) : r * across;
    });
  }
};

/// Row b of the work is the columns 16 b … 16 b + 15.
template <class Real> struct gain_columns {
  mo::matrix_view<Real const> x, inverse, dy;
  mo::matrix_view<Real> dg;

  template <class Team> MOIETY_HD void operator()(Team const& team, std::int64_t b) const {
    std::int64_t const first = lanes * b, left = x.cols() - first;
    Real* const sum = dg.data() + first;
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      Real const *const in = x.row(t) + first, *const d = dy.row(t) + first;
      Real const r = inverse.row(t)[0];
      team.columns(left < lanes ? left : lanes, [&](std::int64_t h) { sum[h] = mo::fma(d[h] * in[h], r, sum[h]); });
    }
  }
};

}  // namespace detail

/// inverse becomes r, [T × 1].
template <class Context>
void rms_norm(Context& ctx, const_view<Context> x, const_view<Context> g, view<Context> y,
              matrix_of<Context>& inverse) {
  reshape(ctx, inverse, x.rows(), 1);
  for_rows(ctx.engine(), x.rows(), 64, detail::normed_rows<typename Context::element>{x, g, y, inverse});
}

template <class Context>
void rms_norm_input(Context& ctx, const_view<Context> x, const_view<Context> g, const_view<Context> inverse,
                    const_view<Context> dy, const_view<Context> base, view<Context> dx) {
  for_rows(ctx.engine(), x.rows(), 64,
           detail::norm_gradient_rows<typename Context::element>{x, g, inverse, dy, base, dx});
}

/// Columns are shared out, so each sum over tokens has one order.
template <class Context>
void rms_norm_gain(Context& ctx, const_view<Context> x, const_view<Context> inverse, const_view<Context> dy,
                   view<Context> dg) {
  for_rows(ctx.engine(), (x.cols() + lanes - 1) / lanes, 1,
           detail::gain_columns<typename Context::element>{x, inverse, dy, dg});
}

}  // namespace lm
