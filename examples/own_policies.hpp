// SPDX-License-Identifier: Apache-2.0
// A policy of your own in every role: an activation, a score rule, a selection, a weight rule and a loss. Members that
// kernels call are marked MOIETY_HD: the same struct runs on the host and on a device.
#pragma once

#include <moiety/moiety.hpp>

#include <string_view>

namespace own {

namespace mo = moiety;

struct softplus {
  MOIETY_HD static auto value(auto v) { return v > 0 ? v + mo::log(1 + mo::exp(-v)) : mo::log(1 + mo::exp(v)); }
  MOIETY_HD static auto derivative(auto v) { return mo::logistic(v); }
};

// Scores grow with the square root of softplus: s = √log(1 + e^z).
struct root_softplus {
  MOIETY_HD void forward(mo::score_row auto& row) const {
    row.map([](auto z) { return mo::sqrt(softplus::value(z)); });
  }
  // s² = softplus(z), so e^z = e^(s²) − 1, and ds/dz = (1 − e^(−s²)) / 2s.
  MOIETY_HD void backward(mo::score_row auto const& scores, mo::score_row auto& gradient) const {
    gradient.map(scores, [](auto g, auto s) { return g * (1 - mo::exp(-s * s)) / (2 * s); });
  }
};

// The K best experts, no two of them neighbours.
template <int K> struct spread_out {
  static constexpr int count = K;
  template <mo::score_row Row, class Chosen> MOIETY_HD void forward(Row& scores, Chosen const& chosen) const {
    for (int slot = 0; slot < K; ++slot) {
      int const best = scores.argmax();
      chosen(slot, best);
      for (int const near : {best - 1, best, best + 1}) scores.remove(near);
    }
  }
};

// Weights are the squares of the scores: w = s², dw/ds = 2 s.
struct sharpened {
  static constexpr mo::weight_source source = mo::weight_source::scores;
  MOIETY_HD void forward(mo::score_row auto& row) const {
    row.map([](auto s) { return s * s; });
  }
  MOIETY_HD void backward(mo::score_row auto const& scores, mo::score_row auto const& /* weights */,
                          mo::score_row auto& gradient) const {
    gradient.map(scores, [](auto g, auto s) { return 2 * s * g; });
  }
};

// Σ_e P̄_e² of the mean probabilities: smallest, 1/E, where experts are used alike.
struct concentration {
  static constexpr std::string_view name = "concentration";
  using unit = mo::over::micro_batch;
  float coefficient = 0;
  MOIETY_HD static double mean(auto& e, auto& of) { return e.probability.value() / static_cast<double>(of.tokens()); }
  double value(mo::statistics_view const& of) const {
    double sum = 0;
    for (auto const& e : of.experts) sum += of.tokens() > 0 ? mean(e, of) * mean(e, of) : 0;
    return sum;
  }
  MOIETY_HD void token_gradient(mo::statistics_view const& of, auto factor, auto const&, auto& dp, auto&) const {
    double const scale = 2 * static_cast<double>(factor) / static_cast<double>(of.tokens());
    dp.map_indexed([&](auto old, int e) { return old + scale * mean(of.experts[static_cast<unsigned>(e)], of); });
  }
};

struct layer : mo::layer_spec<mo::dims{.hidden = 32, .ffn = 24, .experts = 6}> {
  using router = mo::router<root_softplus, spread_out<2>, sharpened>;
  using experts = mo::gated_mlp<softplus>;
  using losses = mo::losses<concentration>;
};

}  // namespace own
