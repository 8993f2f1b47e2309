// SPDX-License-Identifier: Apache-2.0
// A call of a layer that is recorded into a CUDA graph and replayed.
#pragma once

#include <moiety/cuda.cuh>
#include <moiety/moiety.hpp>

#include "captured_graph.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace testing {

/// infer gives the same bits from a graph, which finds y cleared.
template <class Spec, class Deployment> void check_captured_infer() {
  namespace mo = moiety;
  using T = typename Deployment::element;
  constexpr std::int64_t tokens = 50, hidden = mo::spec_of<Spec>::hidden;
  mo::context<Deployment> ctx;
  mo::moe_layer<Spec, Deployment> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden);
  mo::fill_normal(ctx, x, mo::seed{2});
  layer.infer(weights, x, y);
  auto const wanted = y.host();
  captured_graph const graph(ctx.engine().stream(), [&] { layer.infer(weights, x, y); });
  ctx.memory().zero(y.data(), static_cast<std::int64_t>(y.size() * sizeof(T)));
  graph.replay();
  auto const got = y.host();
  CHECK(same_bits(std::vector<T>(got.begin(), got.end()), std::vector<T>(wanted.begin(), wanted.end())));
}

}  // namespace testing
