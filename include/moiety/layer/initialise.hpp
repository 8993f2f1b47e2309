// SPDX-License-Identifier: Apache-2.0
// Weights to start from: normal, with standard deviation 1/√fan_in; biases, noise and states start at 0. A value is a function of (seed, prefix and name of the
// parameter, logical index) alone, so it depends neither on the layout nor on the number of threads.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/random.hpp>
#include <moiety/kernels/fill_normal.hpp>
#include <moiety/layer/parameters.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

template <class Engine, class Spec, scalar T, class Layout>
void initialise_weights(Engine& engine, layer_weights<Spec, T, Layout>& weights, seed key,
                        std::string_view prefix = {}) {
  weights.for_each([&]<class V>(parameter const& p, std::span<V> values) {
    if (p.fan_in == 0) return engine.memory().zero(values.data(), static_cast<std::int64_t>(values.size_bytes()));
    double const deviation = 1 / moiety::sqrt(static_cast<double>(p.fan_in));
    V* next = values.data();
    p.for_each_piece([&](std::int64_t first, std::int64_t count) {
      kernels::fill_normal(engine, matrix_view<V>(next, 1, count), deviation, key,
                           stream_of(std::string(prefix) + p.name), first);
      next += count;
    });
  });
}

}  // namespace moiety
