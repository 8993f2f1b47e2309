// SPDX-License-Identifier: Apache-2.0
// The main function of tests that run on a device; 77, and no test, where there is none.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cuda_runtime.h>
#include <cstdio>

int main(int argc, char** argv) {
  int devices = 0;
  cudaError_t const result = cudaGetDeviceCount(&devices);
  if (result != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: %s\n", cudaGetErrorString(result));
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
