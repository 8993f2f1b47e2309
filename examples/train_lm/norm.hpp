// SPDX-License-Identifier: Apache-2.0
// Root mean square norm (Zhang and Sennrich 2019):
//
//   y = g ⊙ x · r,   r = 1 / √(mean(x²) + ε)
//
// x, y [T × H], g [H]. Backward, with n = x · r:  dx += r (g ⊙ dy − n · mean(g ⊙ dy ⊙ n)),  dg += Σ dy ⊙ n.
// It adds to dx, because the residual stream's gradient is already there.
#pragma once

#include "parameter.hpp"
#include "row_math.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace lm {

template <class Context> class rms_norm {
 public:
  using real = typename Context::element;
  struct tape {
    std::vector<real> r;  // one a row
  };

  rms_norm(Context& ctx, std::string name, std::int64_t hidden)
      : ctx_(&ctx), gain_{std::move(name), ctx.matrix(1, hidden), ctx.matrix(1, hidden)} {
    std::fill(gain_.value.begin(), gain_.value.end(), real{1});
  }

  void forward(const_view<Context> x, view<Context> y, tape& saved) const {
    saved.r.resize(static_cast<std::size_t>(x.rows()));
    real const* const gain = gain_.value.data();
    ctx_->engine().for_blocks(x.rows(), block_rows, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        real const* const in = x.row(t);
        real* const out = y.row(t);
        real const mean = dot(in, in, x.cols()) / static_cast<real>(x.cols());
        real const r = real{1} / std::sqrt(mean + epsilon);
        for (std::int64_t h = 0; h < x.cols(); ++h) out[h] = in[h] * r * gain[h];
        saved.r[static_cast<std::size_t>(t)] = r;
      }
    });
  }

  void backward(const_view<Context> x, tape const& saved, const_view<Context> dy, view<Context> dx) {
    add_to_gain(x, saved, dy);
    real const* const gain = gain_.value.data();
    ctx_->engine().for_blocks(x.rows(), block_rows, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        real const *const in = x.row(t), *const d = dy.row(t);
        real* const out = dx.row(t);
        auto const project = [&](real s, std::int64_t h) { return mo::fma(gain[h] * d[h], in[h], s); };
        real const projected = reduce(x.cols(), real{0}, project, std::plus<real>{});
        real const r = saved.r[static_cast<std::size_t>(t)], along = -projected * r * r / static_cast<real>(x.cols());
        for (std::int64_t h = 0; h < x.cols(); ++h) out[h] = mo::fma(r, mo::fma(in[h], along, gain[h] * d[h]), out[h]);
      }
    });
  }

  template <class Function> void for_each_parameter(Function&& f) { f(gain_, /*decayed=*/false); }

 private:
  static constexpr real epsilon = static_cast<real>(1e-5);
  static constexpr std::int64_t block_rows = 64, block_columns = 16;

  /// Columns are shared out, so each sum over tokens has one order.
  void add_to_gain(const_view<Context> x, tape const& saved, const_view<Context> dy) {
    real* const sum = gain_.gradient.data();
    ctx_->engine().for_blocks(x.cols(), block_columns, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = 0; t < x.rows(); ++t) {
        real const r = saved.r[static_cast<std::size_t>(t)];
        for (std::int64_t h = first; h < last; ++h) sum[h] = mo::fma(dy(t, h) * x(t, h), r, sum[h]);
      }
    });
  }

  Context* ctx_;
  parameter<real> gain_;
};

}  // namespace lm
