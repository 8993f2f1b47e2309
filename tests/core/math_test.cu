// SPDX-License-Identifier: Apache-2.0
// What a device computes by instructions of its own has the bits of the host.
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>

#include "device_memory.hpp"

#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

template <class... P, class... A> void launch(int blocks, void (*kernel)(P...), A... given) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks)), config.blockDim = dim3(128);
  testing::succeed(cudaLaunchKernelEx(&config, kernel, static_cast<P>(given)...));
}

__global__ void count_wrong_reciprocals(std::uint32_t first, std::uint32_t last, std::uint32_t step,
                                        unsigned long long* wrong) {
  std::uint32_t const thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  for (std::uint64_t bits = first + std::uint64_t{thread} * step; bits <= last; bits += std::uint64_t{threads} * step) {
    float const v = mo::detail::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (mo::detail::reciprocal(v) != 1.0f / v) atomicAdd(wrong, 1ull);
  }
}

__global__ void compute(float const* from, int count, float* logistic, mo::bf16* b, mo::fp16* h, float* back) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  logistic[i] = mo::logistic(from[i]);
  b[i] = mo::bf16(from[i]), h[i] = mo::fp16(from[i]);
  back[i] = static_cast<float>(h[i]);
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) ||
         mo::detail::bit_cast<std::uint32_t>(a) == mo::detail::bit_cast<std::uint32_t>(b);
}

}  // namespace

TEST_CASE("a reciprocal is what a division gives") {
#if defined(CUDA_ON_CPU)
  std::uint32_t const step = 100003;
#else
  std::uint32_t const step = 1;
#endif
  testing::device_values<unsigned long long> wrong(std::vector<unsigned long long>{0});
  launch(step == 1 ? 1024 : 1, &count_wrong_reciprocals, mo::detail::bit_cast<std::uint32_t>(1.0f),
         mo::detail::bit_cast<std::uint32_t>(mo::detail::largest_divisor<float>), step, wrong.data());
  CHECK(wrong.host()[0] == 0);
}

TEST_CASE("logistic and the storage types have the bits of the host") {
  std::mt19937 words(std::random_device{}());
  std::vector<float> from;
  for (int i = 0; i < 40000; ++i) from.push_back(mo::detail::bit_cast<float>(static_cast<std::uint32_t>(words())));
  for (int i = 0; i < 40000; ++i) from.push_back(static_cast<float>(words() % 200001) / 1000 - 100);
  for (std::uint32_t half = 0; half < 0x10000u; ++half)  // between two values of fp16, and beside
    for (std::uint32_t bits : {half << 13, (half << 13) + 0x1000u, (half << 13) + 0x1001u})
      from.push_back(mo::detail::bit_cast<float>(bits + 0x38000000u));
  auto const count = static_cast<int>(from.size());
  testing::device_values<float> const d_from(from);
  testing::device_values<float> logistic(count), back(count);
  testing::device_values<mo::bf16> b(count);
  testing::device_values<mo::fp16> h(count);
  launch((count + 127) / 128, &compute, d_from.data(), count, logistic.data(), b.data(), h.data(), back.data());
  auto const got = logistic.host(), got_back = back.host();
  auto const got_b = b.host();
  auto const got_h = h.host();
  int wrong = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    float const v = from[i];
    wrong += !same(got[i], mo::logistic(v)) || !same(static_cast<float>(got_b[i]), static_cast<float>(mo::bf16(v))) ||
             !same(static_cast<float>(got_h[i]), static_cast<float>(mo::fp16(v))) ||
             !same(got_back[i], static_cast<float>(mo::fp16(v)));
  }
  CHECK(wrong == 0);
}
