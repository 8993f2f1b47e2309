// SPDX-License-Identifier: Apache-2.0
// Compiled by nvcc only: the CPU run has no cuBLAS.
#include <moiety/experts/cublas.cuh>

#include <moiety/cuda.cuh>

#include "experts/layer_results.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>

namespace mo = moiety;
using layer_results::by;

namespace {

struct gated : mo::layer_spec<mo::dims{.hidden = 136, .ffn = 208, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
struct plain : gated {
  using experts = mo::mlp<mo::gelu>;
};

template <class Spec, class T> void compare(double tolerance) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const wanted = layer_results::run<Spec, by<mo::cuda, T, mo::grouped_products>>(number),
             got = layer_results::run<Spec, by<mo::cuda, T, mo::cublas_products>>(number);
  REQUIRE(wanted.size() == got.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    INFO("result ", i);
    CHECK(layer_results::distance(wanted[i], got[i]) <= tolerance);
  }
}

}  // namespace

TEST_CASE("a layer by cuBLAS computes what the layer of the library does") {
  compare<gated, float>(1e-6);
  compare<plain, double>(1e-14);
  compare<gated, mo::bf16>(4e-3);
  compare<plain, mo::fp16>(4e-3);
}
