// SPDX-License-Identifier: Apache-2.0
// The gradients of a layer in float beside those in double: the same weights, x and dy, and the same experts for each token.
#pragma once

#include <moiety/testing.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace float_gradients {

namespace mo = moiety;

/// How far a gradient in float may be from that in double, in ε of float and the norm of that in double. Most are off by less
/// than 3, and none by more than 6.1: one that is a sum over tokens whose terms nearly cancel.
inline constexpr double tolerance = 24;

template <class T> struct in : mo::deployment<> { using element = T; };

struct outcome {
  std::vector<std::int32_t> ids;
  std::map<std::string, std::vector<double>> gradients;  // of x, and of each parameter by name
};

/// One step on values that are floats.
template <class Spec, class T>
outcome step(std::int64_t tokens, mo::batch about, mo::layer_options<Spec> const& options) {
  auto const draw = [](auto values, std::string_view name, double scale) {
    using V = typename decltype(values)::value_type;
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<V>(static_cast<float>(scale * mo::normal(mo::seed{41}, mo::stream_of(name), i)));
  };
  mo::context<in<T>> ctx{mo::host{.threads = 1}};
  mo::moe_layer<Spec, in<T>> layer{ctx, options};
  auto weights = layer.make_weights(mo::seed{1});
  weights.for_each([&](mo::parameter const& p, auto values) {
    draw(values, p.name, p.fan_in == 0 ? 0.25 : 1 / std::sqrt(static_cast<double>(p.fan_in)));
  });
  layer.pack(weights);
  auto gradients = layer.make_gradients();
  std::int64_t const hidden = mo::spec_of<Spec>::hidden;
  mo::matrix<T> x(tokens, hidden), y(tokens, hidden), dy(tokens, hidden), dx(tokens, hidden);
  draw(std::span(x.data(), x.size()), "x", 1);
  draw(std::span(dy.data(), dy.size()), "dy", 1);
  mo::step_counts const no_counts(mo::spec_of<Spec>::experts);
  if (about.counts == nullptr) about.counts = &no_counts;
  auto tape = layer.forward(weights, x, y, about);
  outcome result;
  auto const& routes = tape.routing();
  result.ids.assign(routes.ids, routes.ids + tokens * routes.slots);
  layer.backward(weights, tape, dy, dx, gradients);
  result.gradients["x"].assign(dx.begin(), dx.end());
  gradients.for_each(
      [&](mo::parameter const& p, auto values) { result.gradients[p.name].assign(values.begin(), values.end()); });
  return result;
}

/// ‖got − wanted‖ / ‖wanted‖ in ε of float.
inline double distance(std::vector<double> const& got, std::vector<double> const& wanted) {
  if (got.size() != wanted.size()) return std::numeric_limits<double>::infinity();
  double miss = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i)
    miss += (got[i] - wanted[i]) * (got[i] - wanted[i]), norm += wanted[i] * wanted[i];
  return miss == 0 ? 0 : std::sqrt(miss / norm) / std::numeric_limits<float>::epsilon();
}

template <class Spec>
void agree(std::int64_t tokens, mo::batch const& about = {},
           mo::layer_options<Spec> const& options = mo::testing::trained_options<Spec>()) {
  outcome const wanted = step<Spec, double>(tokens, about, options), got = step<Spec, float>(tokens, about, options);
  CHECK(got.ids == wanted.ids);
  for (auto const& named : wanted.gradients) {
    CAPTURE(named.first);
    double const error = distance(got.gradients.at(named.first), named.second);
    CHECK(error <= tolerance);
  }
}

}  // namespace float_gradients
