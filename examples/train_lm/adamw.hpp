// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov and Hutter 2019) with clipping by the global norm, and its learning rate schedule.
//
//   g = clip(gradient · scale)      m = β₁ m + (1 − β₁) g      v = β₂ v + (1 − β₂) g²
//   w −= rate (m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε) + decay · w)
#pragma once

#include "parameter.hpp"
#include "row_math.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numbers>
#include <numeric>
#include <span>
#include <vector>

namespace lm {

/// Linear warm-up over the first twentieth, then a cosine down to a tenth. progress in [0, 1].
inline double learning_rate(double peak, double progress) {
  constexpr double warm_up = 0.05, floor = 0.1;
  if (progress < warm_up) return peak * progress / warm_up;
  double const along = (progress - warm_up) / (1 - warm_up);
  return peak * (floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, along))));
}

template <class Context> class adamw {
 public:
  using real = typename Context::element;
  struct settings {
    double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, decay = 0.1, largest_norm = 1;
  };

  explicit adamw(Context& ctx) : adamw(ctx, settings{}) {}
  adamw(Context& ctx, settings const& s) : ctx_(&ctx), s_(s) {}

  /// One update from gradients that are sums; scale is 1 / tokens. Returns the norm before clipping.
  template <class Model> double step(Model& model, double rate, double scale) {
    double square = 0;
    model.for_each_parameter([&](auto const&, auto, auto gradient, bool) { square += square_of(gradient); });
    double const norm = std::sqrt(square) * scale;
    double const clipped = norm > s_.largest_norm ? scale * s_.largest_norm / norm : scale;
    ++steps_;
    std::size_t index = 0;
    model.for_each_parameter([&](auto const&, auto value, auto gradient, bool decayed) {
      if (index == moments_.size())
        moments_.push_back({std::vector<real>(value.size()), std::vector<real>(value.size())});
      update(value, gradient, moments_[index++], rate, clipped, decayed ? s_.decay : 0);
    });
    return norm;
  }

 private:
  struct moments {
    std::vector<real> first, second;
  };
  static constexpr std::int64_t block = 8192;

  double square_of(std::span<real const> g) {
    auto const size = static_cast<std::int64_t>(g.size());
    std::vector<double> parts(static_cast<std::size_t>((size + block - 1) / block));
    ctx_->engine().for_blocks(size, block, [&](std::int64_t first, std::int64_t last, int) {
      auto const at = [&](std::int64_t i) { return static_cast<double>(g[static_cast<std::size_t>(first + i)]); };
      auto const add_square = [&](double s, std::int64_t i) { return mo::fma(at(i), at(i), s); };
      parts[static_cast<std::size_t>(first / block)] = reduce(last - first, 0.0, add_square, std::plus<double>{});
    });
    return std::accumulate(parts.begin(), parts.end(), 0.0);
  }

  void update(std::span<real> w, std::span<real const> g, moments& m, double rate, double scale, double decay) {
    auto const beta1 = static_cast<real>(s_.beta1), beta2 = static_cast<real>(s_.beta2), one = real{1};
    auto const factor = static_cast<real>(rate / (1 - std::pow(s_.beta1, steps_))), clipped = static_cast<real>(scale);
    auto const unbias = static_cast<real>(1 / (1 - std::pow(s_.beta2, steps_)));
    auto const keep = static_cast<real>(1 - rate * decay), epsilon = static_cast<real>(s_.epsilon);
    ctx_->engine().for_blocks(static_cast<std::int64_t>(w.size()), block, [&](std::int64_t from, std::int64_t to, int) {
      real *const value = w.data(), *const first = m.first.data(), *const second = m.second.data();
      real const* const gradient = g.data();
      for (std::int64_t i = from; i < to; ++i) {
        real const d = gradient[i] * clipped;
        first[i] = mo::fma(beta1, first[i], (one - beta1) * d);
        second[i] = mo::fma(beta2, second[i], (one - beta2) * d * d);
        value[i] = mo::fma(keep, value[i], -factor * first[i] / (std::sqrt(second[i] * unbias) + epsilon));
      }
    });
  }

  Context* ctx_;
  settings s_;
  std::vector<moments> moments_;
  double steps_ = 0;
};

}  // namespace lm
