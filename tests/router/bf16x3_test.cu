// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/bf16x3.cuh>

#include <moiety/cuda.cuh>

#include "device_memory.hpp"
#include "experts/captured_infer.hpp"
#include "experts/layer_results.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <random>

namespace mo = moiety;

namespace {

using on_device = layer_results::by<mo::cuda, mo::bf16, mo::grouped_products>;
struct by_tensor_cores : on_device {
  using router_products = mo::bf16x3_products;
};

/// All that a router multiplies: noise that is learned, a bias, and rows with jitter.
struct noisy : layer_results::gated {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::jitter<>, mo::logit_noise, mo::linear_bias>;
};

/// Rows with jitter want more of the workspace than experts do, and end anywhere.
struct wide_jitter : mo::layer_spec<mo::dims{.hidden = 37, .ffn = 8, .experts = 16, .latent = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<1>, mo::jitter<>>;
};

constexpr double of_bf16 = 2e-3;

/// Where the router wants more room than experts do.
struct narrow : mo::layer_spec<mo::dims{.hidden = 96, .ffn = 8, .experts = 64}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
};

template <class Spec> void compare() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  layer_results::check(layer_results::run<Spec, on_device>(number), layer_results::run<Spec, by_tensor_cores>(number),
                       of_bf16, -1);
}

/// Of noise, which tells infer from forward.
template <class Spec> void compare_noisy() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const wanted = layer_results::run<Spec, on_device>(number),
             got = layer_results::run<Spec, by_tensor_cores>(number);
  REQUIRE(wanted.size() == got.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    INFO("result ", i);
    CHECK(layer_results::distance(wanted[i], got[i]) <= of_bf16);
  }
}

}  // namespace

TEST_CASE("a layer whose router multiplies in bf16x3 is that of the default within the rounding of bf16") {
  compare<layer_results::gated>();
  compare<layer_results::odd>();
}

TEST_CASE("noise that is learned, jitter and a bias of the logits go with bf16x3") { compare_noisy<noisy>(); }

TEST_CASE("what a router splits lies aligned behind rows of any length") { compare_noisy<wide_jitter>(); }

TEST_CASE("a call in bf16x3 can be captured into a graph") {
  testing::check_captured_infer<layer_results::gated, by_tensor_cores>();
}

TEST_CASE("the memory of a step with bf16x3 is what describe says, to the byte") {
  constexpr std::int64_t tokens = 70, hidden = mo::spec_of<narrow>::hidden;
  testing::counted_device_memory hook;
  mo::context<by_tensor_cores> ctx{mo::cuda{.memory = &hook}};
  mo::moe_layer<narrow, by_tensor_cores> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dx = ctx.matrix(tokens, hidden);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::tokens const size(tokens);
  std::int64_t const workspace = mo::workspace_bytes<narrow, by_tensor_cores>(size);
  CHECK(workspace > mo::workspace_bytes<narrow, on_device>(size));
  ctx.memory().release();
  std::int64_t const kept = hook.live;
  hook.most = kept;
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, y, dx, gradients);
  CHECK(hook.most - kept == mo::saved_bytes<narrow, by_tensor_cores>(size) + workspace);
}
