// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/tf32.cuh>

#include <moiety/cuda.cuh>

#include "device_memory.hpp"
#include "experts/captured_infer.hpp"
#include "experts/layer_results.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>

namespace mo = moiety;

namespace {

template <class Products> using floats_by = layer_results::by<mo::cuda, float, Products>;

template <class Spec> void compare() {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number);
  layer_results::check(layer_results::run<Spec, floats_by<mo::grouped_products>>(number),
                       layer_results::run<Spec, floats_by<mo::tf32_products>>(number), 2e-3, 1e-6);
}

}  // namespace

TEST_CASE("a layer in tf32 is that of floats within the rounding of operands, and a token's bits are its own") {
  compare<layer_results::gated>();
  compare<layer_results::odd>();
  compare<layer_results::transposed>();
}

TEST_CASE("a call in tf32 can be captured into a graph") {
  testing::check_captured_infer<layer_results::gated, floats_by<mo::tf32_products>>();
}
