// SPDX-License-Identifier: Apache-2.0
#include "../../examples/own_policies.hpp"

#include <moiety/cuda.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

template <class Backend> struct in_float : mo::deployment<> { using backend = Backend; };

/// y and dx of one step, and the value of the loss.
template <class Backend> std::vector<float> step(double& value) {
  constexpr std::int64_t tokens = 67, hidden = 32;
  mo::context<in_float<Backend>> ctx;
  mo::moe_layer<own::layer, in_float<Backend>> layer{ctx, {.losses = {own::concentration{.coefficient = 0.5f}}}};
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dy = ctx.matrix(tokens, hidden),
       dx = ctx.matrix(tokens, hidden);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::fill_normal(ctx, dy, mo::seed{3});
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, dy, dx, gradients);
  value = layer.report(tape).template value<own::concentration>();
  std::vector<float> all(static_cast<std::size_t>(2 * tokens * hidden));
  auto const bytes = tokens * hidden * static_cast<std::int64_t>(sizeof(float));
  ctx.memory().load(all.data(), y.data(), bytes);
  ctx.memory().load(all.data() + tokens * hidden, dx.data(), bytes);
  return all;
}

}  // namespace

TEST_CASE("a user's policies run on a device as they are written, and agree with the host") {
  double on_host = 0, on_device = 1;
  auto const host = step<mo::host>(on_host), device = step<mo::cuda>(on_device);
  CHECK(on_host == on_device);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < host.size(); ++i) {
    difference += std::pow(static_cast<double>(host[i]) - static_cast<double>(device[i]), 2);
    norm += std::pow(static_cast<double>(host[i]), 2);
  }
  CHECK(std::sqrt(difference / norm) < 1e-6);
}
