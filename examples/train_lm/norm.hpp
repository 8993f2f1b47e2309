// SPDX-License-Identifier: Apache-2.0
// Root mean square norm (Zhang and Sennrich 2019):
//
//   y = g ⊙ x · r,   r = 1 / √(mean(x²) + ε)
//
// x, y [T × H], g [1 × H], r [T]. Backward, with n = x · r:
//
//   dx = base + r (g ⊙ dy − n · mean(g ⊙ dy ⊙ n)),  dg += Σ dy ⊙ n
//
// where base is the residual stream's gradient, or none.
#pragma once

#include "row_math.hpp"
#include "tensors.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace lm {

template <class Context>
void rms_norm(Context& ctx, const_view<Context> x, const_view<Context> g, view<Context> y,
              std::vector<typename Context::element>& inverse) {
  using real = typename Context::element;
  constexpr real epsilon = static_cast<real>(1e-5);
  inverse.resize(static_cast<std::size_t>(x.rows()));
  real const* const gain = g.data();
  ctx.engine().for_blocks(x.rows(), 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      real const* const in = x.row(t);
      real* const out = y.row(t);
      real const mean = dot(in, in, x.cols()) / static_cast<real>(x.cols());
      real const r = real{1} / std::sqrt(mean + epsilon);
      for (std::int64_t h = 0; h < x.cols(); ++h) out[h] = in[h] * r * gain[h];
      inverse[static_cast<std::size_t>(t)] = r;
    }
  });
}

template <class Context>
void rms_norm_input(Context& ctx, const_view<Context> x, const_view<Context> g,
                    std::vector<typename Context::element> const& inverse, const_view<Context> dy,
                    const_view<Context> base, view<Context> dx) {
  using real = typename Context::element;
  real const* const gain = g.data();
  ctx.engine().for_blocks(x.rows(), 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      real const *const in = x.row(t), *const d = dy.row(t);
      real* const out = dx.row(t);
      auto const project = [&](real s, std::int64_t h) { return mo::fma(gain[h] * d[h], in[h], s); };
      real const projected = reduce(x.cols(), real{0}, project, std::plus<real>{});
      real const r = inverse[static_cast<std::size_t>(t)];
      real const along = -projected * r * r / static_cast<real>(x.cols());
      if (base.data() != nullptr) {
        real const* const from = base.row(t);
        for (std::int64_t h = 0; h < x.cols(); ++h) out[h] = mo::fma(r, mo::fma(in[h], along, gain[h] * d[h]), from[h]);
      } else {
        for (std::int64_t h = 0; h < x.cols(); ++h) out[h] = r * mo::fma(in[h], along, gain[h] * d[h]);
      }
    }
  });
}

/// Columns are shared out, so each sum over tokens has one order.
template <class Context>
void rms_norm_gain(Context& ctx, const_view<Context> x, std::vector<typename Context::element> const& inverse,
                   const_view<Context> dy, view<Context> dg) {
  auto* const sum = dg.data();
  ctx.engine().for_blocks(x.cols(), 16, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      auto const r = inverse[static_cast<std::size_t>(t)];
      for (std::int64_t h = first; h < last; ++h) sum[h] = mo::fma(dy(t, h) * x(t, h), r, sum[h]);
    }
  });
}

}  // namespace lm
