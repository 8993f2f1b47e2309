// SPDX-License-Identifier: Apache-2.0
// A layer written out in plain loops, in long double where it matters: slow, independent, for comparison only.
#pragma once

#include <moiety/moiety.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace reference {

/// The weights of a gated or plain MLP layer, in double.
struct weights {
  std::int64_t hidden = 0, ffn = 0, experts = 0;
  std::vector<double> router, gate, up, down;

  template <class Weights> void take(Weights const& from) {
    from.for_each([&](moiety::parameter const& p, auto values) {
      std::vector<double>& to = p.name == "router.weight"  ? router
                                : p.name == "experts.gate" ? gate
                                : p.name == "experts.up"   ? up
                                                           : down;
      to.assign(values.begin(), values.end());
      if (p.name == "experts.up") experts = p.shape[0], ffn = p.shape[1], hidden = p.shape[2];
    });
  }
};

/// Softmax scores, the k largest, renormalised if asked: y for one token.
template <class Activation>
std::vector<double> token_output(weights const& w, std::vector<double> const& x, std::int64_t k, bool renormalise,
                                 Activation const& act) {
  auto const H = static_cast<std::size_t>(w.hidden), I = static_cast<std::size_t>(w.ffn),
             E = static_cast<std::size_t>(w.experts);
  std::vector<double> p(E);
  for (std::size_t e = 0; e < E; ++e)
    p[e] = std::inner_product(x.begin(), x.end(), w.router.begin() + static_cast<std::ptrdiff_t>(e * H), 0.0);
  double const peak = *std::max_element(p.begin(), p.end());
  double total = 0;
  for (double& v : p) total += v = std::exp(v - peak);
  for (double& v : p) v /= total;
  std::vector<std::size_t> order(E);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
  double chosen = 0;
  for (std::int64_t j = 0; j < k; ++j) chosen += p[order[static_cast<std::size_t>(j)]];
  std::vector<double> y(H, 0.0);
  for (std::int64_t j = 0; j < k; ++j) {
    std::size_t const e = order[static_cast<std::size_t>(j)];
    double const weight = renormalise ? p[e] / chosen : p[e];
    std::vector<double> a(I);
    for (std::size_t i = 0; i < I; ++i) {
      double gate = 0, up = 0;
      for (std::size_t h = 0; h < H; ++h) {
        if (!w.gate.empty()) gate += w.gate[(e * I + i) * H + h] * x[h];
        up += w.up[(e * I + i) * H + h] * x[h];
      }
      a[i] = w.gate.empty() ? act(up) : act(gate) * up;
    }
    for (std::size_t h = 0; h < H; ++h)
      for (std::size_t i = 0; i < I; ++i) y[h] += weight * w.down[(e * H + h) * I + i] * a[i];
  }
  return y;
}

}  // namespace reference
