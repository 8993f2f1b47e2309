// SPDX-License-Identifier: Apache-2.0
// Compiled by nvcc only: the CPU run has no CUB.
#include <moiety/kernels/cuda/radix_sort.cuh>

#include <moiety/cuda.cuh>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;
using testing::device_values;

namespace {

/// A permutation in device memory, poisoned.
struct result {
  device_values<std::int64_t> starts;
  device_values<std::int32_t> sources, positions;
  mo::permutation_view view;

  result(std::int64_t tokens, std::int64_t experts, std::int64_t slots)
      : starts(experts + 1), sources(tokens * slots), positions(tokens * slots) {
    view = {tokens, experts, slots, starts.data(), sources.data(), positions.data()};
  }
};

void compare(std::int64_t tokens, std::int64_t experts, std::int64_t slots, bool to_one) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", tokens, " tokens to ", slots, " of ", experts);
  std::mt19937_64 random(number);
  std::vector<std::int32_t> ids;
  std::vector<mo::token_state> states;
  for (std::int64_t t = 0; t < tokens; ++t) {
    auto const first = to_one ? 0 : static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(experts));
    for (std::int64_t j = 0; j < slots; ++j) ids.push_back(static_cast<std::int32_t>((first + j * j + j) % experts));
    states.push_back(static_cast<mo::token_state>(random() % 5 % 4));
  }
  device_values<std::int32_t> d_ids(ids);
  device_values<mo::token_state> d_states(states);
  mo::routing_view<float> const routes{tokens, experts, slots, d_ids.data(), nullptr, d_states.data()};
  mo::cuda_engine engine{mo::cuda{}};
  result sorted(tokens, experts, slots), counted(tokens, experts, slots);
  mo::radix_sort::build<float>(engine, routes, sorted.view);
  mo::counting_sort::build<float>(engine, routes, counted.view);
  CHECK(sorted.starts.host() == counted.starts.host());
  CHECK(sorted.sources.host() == counted.sources.host());
  CHECK(sorted.positions.host() == counted.positions.host());
}

}  // namespace

TEST_CASE("CUB's sort builds the permutation of the counting sort") {
  for (bool const to_one : {false, true}) {
    compare(0, 4, 2, to_one);
    compare(1, 1, 1, to_one);
    compare(1000, 1, 1, to_one);
    compare(777, 5, 2, to_one);
    compare(4096, 128, 8, to_one);
    compare(40'000, 256, 3, to_one);
  }
}

TEST_CASE("more rows than a 32-bit index holds are refused") {
  mo::cuda_engine engine{mo::cuda{}};
  mo::routing_view<float> const huge{std::int64_t{1} << 28, 8, 8};
  CHECK_THROWS_WITH_AS(mo::radix_sort::build<float>(engine, huge, {}), doctest::Contains("32 bits"), mo::data_error);
}

namespace {
struct one_gpu : mo::deployment<> {
  using backend = mo::cuda;
};
struct sorted : one_gpu {
  using index_builder = mo::radix_sort;
};
struct small : mo::layer_spec<mo::dims{.hidden = 16, .ffn = 32, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};

template <class Deployment> std::vector<float> result_of() {
  mo::context<Deployment> ctx;
  mo::moe_layer<small, Deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{3});
  auto x = ctx.matrix(50, 16), y = ctx.matrix(50, 16);
  mo::fill_normal(ctx, x, mo::seed{4});
  layer.infer(weights, x, y);
  std::vector<float> values(50 * 16);
  ctx.memory().load(values.data(), y.data(), 50 * 16 * static_cast<std::int64_t>(sizeof(float)));
  return values;
}
}  // namespace

TEST_CASE("a layer that sorts has the bits of one that counts") { CHECK(result_of<sorted>() == result_of<one_gpu>()); }
