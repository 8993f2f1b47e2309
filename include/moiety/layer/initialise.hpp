// SPDX-License-Identifier: Apache-2.0
// Weights to start from: normal, with standard deviation 1/√fan_in. A value is a function of (seed, name of the
// parameter, logical index) alone, so it depends neither on the layout nor on the number of threads.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/core/random.hpp>
#include <moiety/layer/parameters.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace moiety::inline MOIETY_ABI {

template <class Engine, class Spec, scalar T, class Layout>
void initialise_weights(Engine& engine, layer_weights<Spec, T, Layout>& weights, seed key) {
  weights.for_each([&]<class V>(parameter const& p, std::span<V> values) {
    double const deviation = 1 / moiety::sqrt(static_cast<double>(p.fan_in));
    std::uint64_t const stream = stream_of(p.name);
    engine.for_blocks(static_cast<std::int64_t>(p.size()), 4096, [&](std::int64_t begin, std::int64_t end, int) {
      normal_sequence normals(key, stream, static_cast<std::uint64_t>(begin));
      for (std::int64_t i = begin; i < end; ++i)
        values[static_cast<std::size_t>(i)] = static_cast<V>(static_cast<sum_t<V>>(deviation * normals.next()));
    });
  });
}

}  // namespace moiety
