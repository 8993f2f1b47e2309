// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/fp8.cuh>

#include <moiety/cuda.cuh>

#include "device_memory.hpp"
#include "experts/captured_infer.hpp"
#include "experts/layer_results.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>

namespace mo = moiety;
using layer_results::by;
using layer_results::gated;
using layer_results::odd;
using layer_results::transposed;

namespace {

/// The device's sums of exact products are those of the host within their own rounding, which turns a value between two of e4m3
/// into another now and then: one of 50 tokens' is seen in a gradient of few elements.
template <class Spec, class T, class Products> void compare() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  auto const got = layer_results::run<Spec, by<mo::cuda, T, Products>>(number);
  layer_results::check(layer_results::run<Spec, by<mo::host, T, Products>>(number), got, 0.01, -1, 0.05);
  auto const plain = layer_results::run<Spec, by<mo::host, T, mo::grouped_products>>(number);
  CHECK(layer_results::distance(plain[1], got[1]) > 0.01);
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
  testing::check_captured_infer<gated, by<mo::cuda, mo::bf16, mo::fp8_products>>();
}
