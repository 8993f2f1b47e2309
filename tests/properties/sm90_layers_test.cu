// SPDX-License-Identifier: Apache-2.0
// Whole layers whose products are those of sm_90a, however few their rows, against the portable kernels: the same bits.
#if !defined(__CUDA_ARCH_LIST__)
#define __CUDA_ARCH_LIST__ 900  // what nvcc says of itself; on the CPU, this test does
#endif
#include <moiety/cuda.cuh>

#include <moiety/router/bf16x3.cuh>

#include <experts/layer_results.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <ratio>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using by_grouped = layer_results::by<mo::cuda, mo::bf16, mo::grouped_products>;
struct by_bf16x3 : by_grouped {
  using router_products = mo::bf16x3_products;
};

/// With biases, whose gradients stand beside those of matrices.
struct biased : layer_results::gated {
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::biased, mo::interleaved>;
};

mo::cuda const here{.few_rows = 0}, portable{.portable = true};

std::int64_t launches_of([[maybe_unused]] std::string const& kernel) {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::launches_of(kernel);
#else
  return 0;
#endif
}

/// dx and all gradients of a backward, whole or in halves; and how often rows were gathered in it.
template <class Spec>
std::pair<std::vector<std::vector<double>>, std::int64_t> backward(std::uint64_t number, bool halves) {
  constexpr std::int64_t tokens = layer_results::tokens, hidden = mo::spec_of<Spec>::hidden;
  mo::context<by_grouped> ctx{here};
  mo::moe_layer<Spec, by_grouped> layer{ctx};
  auto weights = layer.make_weights(mo::seed{number});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dy = ctx.matrix(tokens, hidden),
       dx = ctx.matrix(tokens, hidden);
  mo::fill_normal(ctx, x, mo::seed{number + 1});
  mo::fill_normal(ctx, dy, mo::seed{number + 2});
  std::int64_t gathered = 0;
  for (int pass = 0; pass < 2; ++pass) {
    auto tape = layer.forward(weights, x, y);
    ctx.synchronize();
    std::int64_t const before = launches_of("copy_rows");
    if (halves)
      layer.backward_input(weights, tape, dy, dx), layer.backward_weights(tape, gradients);
    else
      layer.backward(weights, tape, dy, dx, gradients);
    ctx.synchronize();
    gathered = launches_of("copy_rows") - before;
  }
  std::vector<std::vector<double>> all;
  auto const keep = [&](auto const* from, std::size_t count) { layer_results::append_values(ctx, from, count, all); };
  keep(dx.data(), dx.size());
  gradients.for_each([&](mo::parameter const&, auto values) { keep(values.data(), values.size()); });
  return {all, gathered};
}

template <class Spec, class Deployment> void check_kernels() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const before = launches_of("wgmma_tiles");
  auto const got = layer_results::run<Spec, Deployment>(number, here);
#if defined(CUDA_ON_CPU)
  CHECK(launches_of("wgmma_tiles") - before >= 2 * 8);  // two steps; routers have products of floats by default
#endif
  CHECK(got == layer_results::run<Spec, Deployment>(number, portable));
}

}  // namespace

TEST_CASE("layers have the bits of the portable kernels") {
  check_kernels<layer_results::gated, by_grouped>();
  check_kernels<biased, by_grouped>();
  check_kernels<layer_results::gated, by_bf16x3>();
}

TEST_CASE("a whole backward gathers rows of dy once, its halves twice, with the same bits") {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const [whole, gathered] = backward<biased>(number, false);
  auto const [halves, gathered_twice] = backward<biased>(number, true);
  CHECK(whole == halves);
#if defined(CUDA_ON_CPU)
  CHECK(gathered == 2);
  CHECK(gathered_twice == 3);
#endif
}
