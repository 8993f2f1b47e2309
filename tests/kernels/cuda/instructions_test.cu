// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/instructions.cuh>

#include <moiety/core/e4m3.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/fragments.hpp>

#include <cuda_runtime.h>

#include <doctest/doctest.h>
#include <device_memory.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace mo = moiety;
using namespace moiety::kernels;
using testing::device_values;

namespace {

template <class T> __global__ void one_mma(std::uint32_t const* a, std::uint32_t const* b, float* c) {
  std::uint32_t left[4];
  float sums[4];
  for (int i = 0; i < 4; ++i) left[i] = a[threadIdx.x * 4 + static_cast<unsigned>(i)];
  for (int i = 0; i < 4; ++i) sums[i] = c[threadIdx.x * 4 + static_cast<unsigned>(i)];
  mma<T>(sums, left, b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]);
  for (int i = 0; i < 4; ++i) c[threadIdx.x * 4 + static_cast<unsigned>(i)] = sums[i];
}

/// Where the elements of a register lie, and its bits: four of 8 bits, two of 16 bits, or a float.
template <class T> struct registers {
  static constexpr int size = static_cast<int>(sizeof(T)), depth = 32 / size;
  template <class At> static std::uint32_t of(At const& at, gpu::element (*element)(int, int, int), int lane, int reg) {
    if constexpr (size == 4) {
      return mo::detail::bit_cast<std::uint32_t>(at(element(lane, reg, 0)));
    } else {
      std::uint32_t bits = 0;
      for (int i = 0; i < 4 / size; ++i) bits |= std::uint32_t{T(at(element(lane, reg, i))).bits} << (i * size * 8);
      return bits;
    }
  }
  static gpu::element a(int lane, int reg, int i) {
    if (size == 1) return gpu::e4m3_a_element(lane, reg, i);
    return size == 4 ? gpu::tf32_a_element(lane, reg) : gpu::a_element(lane, reg, i);
  }
  static gpu::element b(int lane, int reg, int i) {
    if (size == 1) return gpu::e4m3_b_element(lane, reg, i);
    return size == 4 ? gpu::tf32_b_element(lane, reg) : gpu::b_element(lane, reg, i);
  }
};

/// Multiplies random small integers, so that every order of sums is exact.
template <class T> void check_mma(unsigned seed) {
  using held = registers<T>;
  std::mt19937 random(seed);
  auto const value = [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); };
  float a[16][32], b[32][8], c[16][8];
  for (auto& row : a)
    for (float& x : row) x = value();
  for (auto& row : b)
    for (float& x : row) x = value();
  for (auto& row : c)
    for (float& x : row) x = value();
  std::vector<std::uint32_t> a_regs, b_regs;
  std::vector<float> c_regs;
  for (int lane = 0; lane < 32; ++lane) {
    for (int reg = 0; reg < 4; ++reg) {
      a_regs.push_back(held::of([&](gpu::element at) { return a[at.row][at.col]; }, &held::a, lane, reg));
      gpu::element const sum = gpu::c_element(lane, reg);
      c_regs.push_back(c[sum.row][sum.col]);
    }
    for (int reg = 0; reg < 2; ++reg)
      b_regs.push_back(held::of([&](gpu::element at) { return b[at.row][at.col]; }, &held::b, lane, reg));
  }
  device_values<std::uint32_t> const a_there(a_regs), b_there(b_regs);
  device_values<float> c_there(c_regs);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(32);
  testing::succeed(cudaLaunchKernelEx(&config, &one_mma<T>, a_there.data(), b_there.data(), c_there.data()));
  auto const got = c_there.host();
  bool exact = true;
  for (int lane = 0; lane < 32; ++lane)
    for (int reg = 0; reg < 4; ++reg) {
      gpu::element const at = gpu::c_element(lane, reg);
      float sum = c[at.row][at.col];
      for (int k = 0; k < held::depth; ++k) sum += a[at.row][k] * b[k][at.col];
      exact = exact && got[static_cast<std::size_t>(lane * 4 + reg)] == sum;
    }
  CHECK(exact);
}

__global__ void round_all(std::uint32_t* bits) { bits[threadIdx.x] = rounded_to_tf32(bits[threadIdx.x]); }

/// Shared memory holds 512 numbered elements; row r of matrix m begins at the multiple of 8 that `rows` says.
__global__ void load_matrices(int const* rows, std::uint32_t* out) {
  auto* const elements = reinterpret_cast<std::uint16_t*>(dynamic_shared());
  int const lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 512; i += 32) elements[i] = static_cast<std::uint16_t>(i);
  __syncthreads();
  void const* const address = elements + rows[lane];
  std::uint32_t four[4];
  ldmatrix_x4(four, address);
  for (int i = 0; i < 4; ++i) out[lane * 8 + i] = four[i];
  ldmatrix_x4_trans(four, address);
  for (int i = 0; i < 4; ++i) out[lane * 8 + 4 + i] = four[i];
}

/// Each thread copies chunk by chunk through two stages; chunk i has counts[i] bytes.
__global__ void copy_chunks(unsigned char const* from, int const* counts, int chunks, unsigned char* to) {
  constexpr int stages = 3;
  std::byte* const mine = dynamic_shared() + threadIdx.x * stages * 16;
  int const first = static_cast<int>(threadIdx.x) * chunks;
  for (int i = 0; i < stages - 1; ++i) {
    if (i < chunks) copy_async_16(mine + i * 16, from + (first + i) * 16, counts[first + i]);
    commit_copies();
  }
  for (int i = 0; i < chunks; ++i) {
    wait_copies<stages - 2>();
    int const next = i + stages - 1;
    if (next < chunks) copy_async_16(mine + next % stages * 16, from + (first + next) * 16, counts[first + next]);
    commit_copies();
    for (int b = 0; b < 16; ++b) to[(first + i) * 16 + b] = static_cast<unsigned char>(mine[i % stages * 16 + b]);
  }
}

}  // namespace

TEST_CASE("mma multiplies what the fragments hold") {
  unsigned const seed = std::random_device{}();
  INFO("seed ", seed);
  check_mma<mo::bf16>(seed);
  check_mma<mo::fp16>(seed + 1);
}

TEST_CASE("ldmatrix loads rows and their transposes from where each lane points") {
  unsigned const seed = std::random_device{}();
  INFO("seed ", seed);
  std::mt19937 random(seed);
  std::vector<int> rows(32);
  for (int& row : rows) row = static_cast<int>(random() % 64) * 8;
  device_values<int> const there(rows);
  device_values<std::uint32_t> out(32 * 8);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(32), config.dynamicSmemBytes = 1024;
  testing::succeed(cudaLaunchKernelEx(&config, &load_matrices, there.data(), out.data()));
  auto const got = out.host();
  for (int lane = 0; lane < 32; ++lane)
    for (int reg = 0; reg < 8; ++reg) {
      bool const transposed = reg >= 4;
      int const matrix = reg % 4;
      std::uint32_t expected = 0;
      for (int half = 0; half < 2; ++half) {
        gpu::element const at = gpu::loaded_element(lane, half, transposed);
        int const value = rows[static_cast<std::size_t>(matrix * 8 + at.row)] + at.col;
        expected |= static_cast<std::uint32_t>(value) << (16 * half);
      }
      CHECK(got[static_cast<std::size_t>(lane * 8 + reg)] == expected);
    }
}

TEST_CASE("asynchronous copies arrive whole, with zeros behind what exists") {
  unsigned const seed = std::random_device{}();
  INFO("seed ", seed);
  std::mt19937 random(seed);
  constexpr int threads = 40, chunks = 7;
  std::vector<unsigned char> from(threads * chunks * 16);
  std::vector<int> counts(threads * chunks);
  for (auto& byte : from) byte = static_cast<unsigned char>(random());
  for (int& count : counts) count = static_cast<int>(random() % 17);
  device_values<unsigned char> const from_there(from);
  device_values<int> const counts_there(counts);
  device_values<unsigned char> to(static_cast<std::int64_t>(from.size()));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(threads), config.dynamicSmemBytes = threads * 3 * 16;
  testing::succeed(
      cudaLaunchKernelEx(&config, &copy_chunks, from_there.data(), counts_there.data(), int{chunks}, to.data()));
  auto expected = from;
  for (std::size_t i = 0; i < counts.size(); ++i)
    for (int b = counts[i]; b < 16; ++b) expected[i * 16 + static_cast<std::size_t>(b)] = 0;
  CHECK(testing::same_bits(to.host(), expected));
}

TEST_CASE("mma of floats as tf32 multiplies them") {
  for (unsigned seed = 1; seed < 6; ++seed) check_mma<float>(seed);
}

TEST_CASE("mma of e4m3 multiplies them") {
  int major = 0, minor = 0;
  testing::succeed(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  testing::succeed(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  if (major * 10 + minor < 89) return;
  for (unsigned seed = 1; seed < 6; ++seed) check_mma<mo::e4m3>(seed);
}

TEST_CASE("floats are rounded to the nearest tf32, halves away from 0") {
  constexpr float half = 0x1p-11f, below = 0x1.ffep-12f, last = 0x1p-10f;
  std::vector<std::pair<float, float>> const cases{
      {1.0f, 1.0f},           {-1.0f, -1.0f},       {1 + last, 1 + last},   {1 + half, 1 + last},
      {-1 - half, -1 - last}, {1 + below, 1.0f},    {2 - half / 2, 2.0f},   {0.0f, 0.0f},
      {-0.0f, -0.0f},         {INFINITY, INFINITY}, {-INFINITY, -INFINITY}, {0x1.fffffep127f, INFINITY}};
  std::vector<std::uint32_t> bits(32), wanted(32);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    bits[i] = mo::detail::bit_cast<std::uint32_t>(cases[i].first);
    wanted[i] = mo::detail::bit_cast<std::uint32_t>(cases[i].second);
  }
  device_values<std::uint32_t> there(bits);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(32);
  testing::succeed(cudaLaunchKernelEx(&config, &round_all, there.data()));
  CHECK(there.host() == wanted);
}
