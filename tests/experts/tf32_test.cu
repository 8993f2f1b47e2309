// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/tf32.cuh>

#include <moiety/cuda.cuh>

#include "captured_graph.hpp"
#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

struct one_gpu : mo::deployment<> {
  using backend = mo::cuda;
};
struct in_tf32 : one_gpu {
  using expert_products = mo::tf32_products;
};

struct gated : mo::layer_spec<mo::dims{.hidden = 72, .ffn = 40, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
/// Biases, units side by side, and rows that begin anywhere.
struct odd : mo::layer_spec<mo::dims{.hidden = 37, .ffn = 21, .experts = 5}> {
  using router = mo::router<mo::sigmoid, mo::top_k<2>, mo::on_activation>;
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::biased, mo::interleaved>;
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
  auto const keep = [&](float const* from, std::size_t count) {
    all.emplace_back(count);
    ctx.memory().load(all.back().data(), from, static_cast<std::int64_t>(count * sizeof(float)));
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
  ctx.synchronize();
  return all;
}

template <class Spec> void compare() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const wanted = results<Spec, one_gpu>(number), got = results<Spec, in_tf32>(number);
  REQUIRE(wanted.size() == got.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    INFO("result ", i);
    CHECK(distance(wanted[i], got[i]) <= 2e-3);
  }
  CHECK(distance(wanted[1], got[1]) > 1e-6);  // it is tf32
  CHECK(testing::same_bits(got[0], got[1]));
  std::vector<float> const first(got[0].begin(), got[0].begin() + static_cast<std::ptrdiff_t>(got.back().size()));
  CHECK(testing::same_bits(got.back(), first));
}

}  // namespace

TEST_CASE("a layer in tf32 is that of floats within the rounding of operands, and a token's bits are its own") {
  compare<gated>();
  compare<odd>();
  compare<transposed>();
}

TEST_CASE("a call in tf32 can be captured into a graph") {
  mo::context<in_tf32> ctx;
  mo::moe_layer<gated, in_tf32> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(tokens, 72), y = ctx.matrix(tokens, 72);
  mo::fill_normal(ctx, x, mo::seed{2});
  layer.infer(weights, x, y);
  auto const wanted = y.host();
  testing::captured_graph const graph(ctx.engine().stream(), [&] { layer.infer(weights, x, y); });
  ctx.memory().zero(y.data(), static_cast<std::int64_t>(y.size() * sizeof(float)));
  graph.replay();
  auto const got = y.host();
  CHECK(
      testing::same_bits(std::vector<float>(got.begin(), got.end()), std::vector<float>(wanted.begin(), wanted.end())));
}
