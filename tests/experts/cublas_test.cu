// SPDX-License-Identifier: Apache-2.0
// Compiled by nvcc only: the CPU run has no cuBLAS.
#include <moiety/experts/cublas.cuh>

#include <moiety/cuda.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

template <class T> struct one_gpu : mo::deployment<> {
  using backend = mo::cuda;
  using element = T;
};
template <class T> struct by_cublas : one_gpu<T> { using expert_products = mo::cublas_products; };

struct gated : mo::layer_spec<mo::dims{.hidden = 136, .ffn = 208, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
struct plain : gated {
  using experts = mo::mlp<mo::gelu>;
};

template <class V> std::vector<double> read(mo::arena& memory, V* from, std::int64_t count) {
  std::vector<std::remove_const_t<V>> values(static_cast<std::size_t>(count));
  memory.load(values.data(), from, count * static_cast<std::int64_t>(sizeof(V)));
  std::vector<double> wide;
  for (V const v : values) wide.push_back(static_cast<double>(static_cast<mo::sum_t<std::remove_const_t<V>>>(v)));
  return wide;
}

double distance(std::vector<double> const& a, std::vector<double> const& b) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) error += (a[i] - b[i]) * (a[i] - b[i]), norm += a[i] * a[i];
  return std::sqrt(error / norm);
}

/// y of infer and forward, dx, and all gradients, which are filled twice.
template <class Spec, class Deployment> std::vector<std::vector<double>> results(std::uint64_t number) {
  constexpr std::int64_t tokens = 77, h = mo::spec_of<Spec>::hidden;
  mo::context<Deployment> ctx;
  mo::moe_layer<Spec, Deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{number});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, h), y = ctx.matrix(tokens, h), dy = ctx.matrix(tokens, h), dx = ctx.matrix(tokens, h);
  mo::fill_normal(ctx, x, mo::seed{number + 1});
  mo::fill_normal(ctx, dy, mo::seed{number + 2});
  std::vector<std::vector<double>> all;
  layer.infer(weights, x, y);
  all.push_back(read(ctx.memory(), y.data(), tokens * h));
  for (int pass = 0; pass < 2; ++pass) {
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, dy, dx, gradients);
  }
  all.push_back(read(ctx.memory(), y.data(), tokens * h));
  all.push_back(read(ctx.memory(), dx.data(), tokens * h));
  gradients.for_each([&](mo::parameter const&, auto values) {
    all.push_back(read(ctx.memory(), values.data(), static_cast<std::int64_t>(values.size())));
  });
  ctx.synchronize();
  return all;
}

template <class Spec, class T> void compare(double tolerance) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const wanted = results<Spec, one_gpu<T>>(number), got = results<Spec, by_cublas<T>>(number);
  REQUIRE(wanted.size() == got.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    INFO("result ", i);
    CHECK(distance(wanted[i], got[i]) <= tolerance);
  }
}

}  // namespace

TEST_CASE("a layer by cuBLAS computes what the layer of the library does") {
  compare<gated, float>(1e-6);
  compare<plain, double>(1e-14);
  compare<gated, mo::bf16>(4e-3);
  compare<plain, mo::fp16>(4e-3);
}
