// SPDX-License-Identifier: Apache-2.0
// A step of a layer whose ranks are processes that speak through NCCL, against one rank: layers CASE, where each process is a
// rank, see processes.py. Exit 77 without a device.
#define DOCTEST_CONFIG_IMPLEMENT
#include "properties/ranks.hpp"

#include <moiety/backend/transport/nccl_ranks.cuh>

#include <moiety/cuda.cuh>

#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/dispatcher/padded.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <ratio>
#include <string>

namespace mo = moiety;

namespace {

using plain = ranks::small<ranks::softmax_2>;
struct limited : plain {
  using capacity = mo::capacity<std::ratio<3, 4>>;
};

/// Experts on as many ranks as there are processes.
template <class Dispatcher, class Spec = plain> void check() {
  int const processes = std::atoi(std::getenv("WORLD_SIZE"));
  mo::layout const shape{.data = processes, .expert = processes};
  auto const one =
      ranks::step_on<Spec, float, mo::all_to_all, mo::threads, mo::cuda>({}, {{64}}, ranks::trained<Spec>());
  // A rank that waits says so before processes.py ends it.
  auto const many = ranks::step_on<Spec, float, Dispatcher, mo::nccl, mo::cuda>(
      shape, {ranks::tokens_of(processes, ranks::share::uneven)}, ranks::trained<Spec>(), {}, {},
      {.deadline = std::chrono::seconds(40)});
  ranks::check_same(many, one, shape);
}

}  // namespace

TEST_CASE("all_to_all") { check<mo::all_to_all>(); }
TEST_CASE("chunked") { check<mo::keep_rows<mo::chunked<2>>>(); }
TEST_CASE("padded") { check<mo::padded_all_to_all<64>, limited>(); }
TEST_CASE("all_gather") { check<mo::all_gather_tokens>(); }

int main(int count, char** arguments) {
  int devices = 0;
  if (cudaError_t const result = cudaGetDeviceCount(&devices); result != cudaSuccess || devices == 0) {
    std::cout << "skipped: no CUDA device: " << cudaGetErrorString(result) << std::endl;
    return 77;
  }
  if (count != 2 || std::getenv("WORLD_SIZE") == nullptr) {
    std::cerr << "usage: layers all_to_all | chunked | padded | all_gather, as processes.py runs it" << std::endl;
    return 2;
  }
  doctest::Context context;
  context.setOption("test-case", arguments[1]);
  return context.run();
}
