// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/fp8.cuh>

#include <moiety/cuda.cuh>

#include "captured_graph.hpp"
#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

template <class Backend, class T, class Products> struct of : mo::deployment<> {
  using backend = Backend;
  using element = T;
  using expert_products = Products;
};

struct gated : mo::layer_spec<mo::dims{.hidden = 72, .ffn = 40, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
/// Biases, units side by side, and rows that begin anywhere.
struct odd : mo::layer_spec<mo::dims{.hidden = 37, .ffn = 21, .experts = 5}> {
  using router = mo::router<mo::sigmoid, mo::top_k<2>, mo::on_activation>;
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::biased, mo::interleaved>;
  using shared = mo::shared_experts<1, mo::sigmoid_gated>;
};
struct transposed : gated {
  using experts = mo::mlp<mo::gelu_tanh, mo::in_by_out>;
};

constexpr std::int64_t tokens = 50;

double distance(std::vector<float> const& a, std::vector<float> const& b) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    error += (x - y) * (x - y), norm += x * x;
  }
  return std::sqrt(error / norm);
}

/// y of infer and forward, dx and all gradients, which are filled twice; and y of the first nine tokens alone.
template <class Spec, class Deployment> std::vector<std::vector<float>> results(std::uint64_t number) {
  constexpr std::int64_t h = mo::spec_of<Spec>::hidden;
  mo::context<Deployment> ctx;
  mo::moe_layer<Spec, Deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{number});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, h), y = ctx.matrix(tokens, h), dy = ctx.matrix(tokens, h), dx = ctx.matrix(tokens, h);
  mo::fill_normal(ctx, x, mo::seed{number + 1});
  mo::fill_normal(ctx, dy, mo::seed{number + 2});
  std::vector<std::vector<float>> all;
  auto const keep = [&]<class V>(V const* from, std::size_t count) {
    std::vector<V> values(count);
    ctx.memory().load(values.data(), from, static_cast<std::int64_t>(count * sizeof(V)));
    all.emplace_back(values.begin(), values.end());
  };
  layer.infer(weights, x, y), keep(y.data(), y.size());
  for (int pass = 0; pass < 2; ++pass) {
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, dy, dx, gradients);
  }
  keep(y.data(), y.size()), keep(dx.data(), dx.size());
  gradients.for_each([&](mo::parameter const&, auto values) { keep(values.data(), values.size()); });
  auto few = ctx.matrix(9, h);
  layer.infer(weights, x.rows(0, 9), few), keep(few.data(), few.size());
  return all;
}

/// The device's sums of exact products are those of the host within their own rounding, which a value between two of e4m3 may
/// turn into another; without quantising the distance is ten times as large.
template <class Spec, class T, class Products> void compare() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const wanted = results<Spec, of<mo::host, T, Products>>(number),
             got = results<Spec, of<mo::cuda, T, Products>>(number),
             plain = results<Spec, of<mo::host, T, mo::grouped_products>>(number);
  REQUIRE(wanted.size() == got.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    INFO("result ", i);
    CHECK(distance(wanted[i], got[i]) <= 0.01);
  }
  CHECK(distance(plain[1], got[1]) > 0.01);
  CHECK(testing::same_bits(got[0], got[1]));
  std::vector<float> const first(got[0].begin(), got[0].begin() + static_cast<std::ptrdiff_t>(got.back().size()));
  CHECK(testing::same_bits(got.back(), first));
}

}  // namespace

TEST_CASE_TEMPLATE("a layer in 8 bits on a device is that of the host, and a token's bits are its own", T, float,
                   mo::bf16) {
  compare<gated, T, mo::fp8_products>();
  compare<odd, T, mo::fp8_products>();
  compare<transposed, T, mo::fp8_products>();
  compare<gated, T, mo::fp8_forward_products>();
  compare<gated, T, mo::fp8_block_products>();
  compare<odd, T, mo::fp8_block_products>();
  compare<transposed, T, mo::fp8_block_forward_products>();
}

TEST_CASE("a call in 8 bits can be captured into a graph") {
  using deployment = of<mo::cuda, mo::bf16, mo::fp8_products>;
  mo::context<deployment> ctx;
  mo::moe_layer<gated, deployment> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(tokens, 72), y = ctx.matrix(tokens, 72);
  mo::fill_normal(ctx, x, mo::seed{2});
  layer.infer(weights, x, y);
  auto const wanted = y.host();
  testing::captured_graph const graph(ctx.engine().stream(), [&] { layer.infer(weights, x, y); });
  ctx.memory().zero(y.data(), static_cast<std::int64_t>(y.size() * sizeof(mo::bf16)));
  graph.replay();
  auto const got = y.host();
  CHECK(testing::same_bits(std::vector<mo::bf16>(got.begin(), got.end()),
                           std::vector<mo::bf16>(wanted.begin(), wanted.end())));
}
