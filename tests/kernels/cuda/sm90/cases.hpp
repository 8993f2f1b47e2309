// SPDX-License-Identifier: Apache-2.0
// What tests of sm_90a share: whether there is such a device, tiles of shared memory, launches of one block.
#pragma once

#include <moiety/kernels/cuda/instructions.cuh>
#include <moiety/kernels/cuda/sm90/matrices.hpp>

#include <cuda_runtime.h>

#include <doctest/doctest.h>
#include <device_memory.hpp>

#include <cstddef>

namespace testing {

/// Says so where not; then a test has nothing to do.
inline bool on_sm90() {
  int major = 0, minor = 0;
  succeed(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  succeed(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  if (major != 9 || minor != 0) MESSAGE("skipped: the device is not of compute capability 9.0");
  return major == 9 && minor == 0;
}

/// Dynamic shared memory from the first multiple of 1024 bytes on; ask for `slack` bytes more.
inline constexpr int slack = 1024;
__device__ inline std::byte* tiles() {
  std::byte* const shared = moiety::kernels::dynamic_shared();
  return shared + (1024 - moiety::kernels::shared_address(shared) % 1024) % 1024;
}

template <class... P, class... A> void launch_block(void (*kernel)(P...), int threads, int shared_bytes, A... given) {
  succeed(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  succeed(cudaLaunchKernelEx(&config, kernel, static_cast<P>(given)...));
}

}  // namespace testing
