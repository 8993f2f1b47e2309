// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/epilogues.cuh>

#include <moiety/experts/activation.hpp>
#include <moiety/experts/mlp.hpp>

#include "device_memory.hpp"

#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;
using testing::device_values;

namespace {

constexpr int columns = 8, rows = 64;

/// Calls an epilogue for the sums of each row, as they are or as it says that it rounds them.
template <bool Rounded, class Epilogue, std::size_t M>
__global__ void call(Epilogue const epilogue, float const* sums) {
  int const row = static_cast<int>(threadIdx.x);
  float block[M][columns];
  for (std::size_t m = 0; m < M; ++m)
    for (int c = 0; c < columns; ++c) {
      float const sum = sums[(static_cast<std::size_t>(row) * M + m) * columns + static_cast<std::size_t>(c)];
      block[m][c] = Rounded ? static_cast<float>(static_cast<typename Epilogue::rounded>(sum)) : sum;
    }
  epilogue(0, row, 0, columns, block);
}

template <bool Rounded, std::size_t M, class Epilogue> void launch(Epilogue const& epilogue, float const* sums) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(rows);
  testing::succeed(
      cudaLaunchKernelEx(&config, &call<Rounded, Epilogue, M>, Epilogue(epilogue), static_cast<float const*>(sums)));
}

template <class Mlp, class T> void check_activate() {
  using epilogue = mo::detail::activate<Mlp, T>;
  static_assert(std::same_as<typename epilogue::rounded, T>);
  constexpr std::size_t matrices = epilogue::matrices;
  std::mt19937 words(std::random_device{}());
  std::vector<float> sums(rows * matrices * columns);
  for (float& sum : sums) sum = static_cast<float>(words() % 2000001) / 100000 - 10;
  device_values<float> const there(sums);
  std::vector<std::vector<T>> z, a;
  for (bool const rounded : {false, true}) {
    device_values<T> of_z(rows * Mlp::inputs * columns), of_a(rows * columns);
    epilogue const given{of_z.data(), of_a.data(), columns, nullptr, {}};
    rounded ? launch<true, matrices>(given, there.data()) : launch<false, matrices>(given, there.data());
    z.push_back(of_z.host()), a.push_back(of_a.host());
  }
  CHECK(testing::same_bits(z[0], z[1]));
  CHECK(testing::same_bits(a[0], a[1]));
  bool right = true;  // z is the rounded sums
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t m = 0; m < matrices; ++m)
      for (std::size_t c = 0; c < columns; ++c) {
        T const wanted = static_cast<T>(sums[(row * matrices + m) * columns + c]);
        right = right && z[0][(row * matrices + m) * columns + c].bits == wanted.bits;
      }
  CHECK(right);
}

}  // namespace

TEST_CASE_TEMPLATE("an activation is that of its sums as they are saved", T, mo::bf16, mo::fp16) {
  check_activate<mo::gated_mlp<mo::silu>, T>();
  check_activate<mo::gated_mlp<mo::gelu_tanh>, T>();
  check_activate<mo::mlp<mo::relu_squared>, T>();
}

TEST_CASE("with biases sums are not rounded before they are added") {
  using biased = mo::gated_mlp<mo::silu, mo::biased>;
  static_assert(std::same_as<mo::detail::activate<biased, mo::bf16>::rounded, float>);
  CHECK(mo::has_biases<biased>);
}
