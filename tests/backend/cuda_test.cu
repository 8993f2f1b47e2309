// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/cuda.cuh>

#include <moiety/mesh/context.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

struct on_cuda {
  using backend = mo::cuda;
  using element = float;
  using transport = mo::self;
  static constexpr mo::layout shape{};
};

__global__ void add_one(float* values, int count) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) values[i] += 1;
}

__global__ void set_fault(mo::cuda_faults* faults, mo::cuda_faults seen) { *faults = seen; }

constexpr long long none = mo::cuda_faults::none;

}  // namespace

TEST_CASE("a context has an engine with a stream, memory, and zeroed matrices that the host copies") {
  mo::context<on_cuda> ctx;
  auto x = ctx.matrix(3, 5);
  CHECK(ctx.engine().multiprocessors() >= 1);
  ctx.engine().launch("add_one", add_one, {1, 32}, x.data(), 15);
  ctx.engine().launch("add_one", add_one, {0, 32}, x.data(), 15);  // no block: nothing
  for (float const v : x.host()) CHECK(v == 1);
  ctx.synchronize();
}

TEST_CASE("work goes to the stream of the caller, and waits for events of the caller") {
  cudaStream_t mine = nullptr, other = nullptr;
  cudaEvent_t ready = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&mine, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming) == cudaSuccess);
  {
    mo::context<on_cuda> producer{mo::cuda{0, other}}, ctx{mo::cuda{0, mine}};
    CHECK(ctx.engine().stream() == mine);
    auto x = producer.matrix(1, 8);
    producer.engine().launch("add_one", add_one, {1, 32}, x.data(), 8);
    producer.engine().record(ready);
    ctx.engine().wait(ready);
    ctx.engine().launch("add_one", add_one, {1, 32}, x.data(), 8);
    ctx.synchronize();
    for (float const v : x.host()) CHECK(v == 2);
  }
  CHECK(cudaEventDestroy(ready) == cudaSuccess);
  CHECK(cudaStreamDestroy(mine) == cudaSuccess);
  CHECK(cudaStreamDestroy(other) == cudaSuccess);
}

TEST_CASE("what only the device could see comes out of the next synchronize, once") {
  mo::context<on_cuda> ctx;
  ctx.engine().launch("set_fault", set_fault, {1, 1}, ctx.engine().faults(), mo::cuda_faults{12, none, none});
  CHECK_THROWS_WITH_AS(ctx.synchronize(), "the router logits of token 12 were not all finite.", mo::data_error);
  CHECK_NOTHROW(ctx.synchronize());
  ctx.engine().launch("set_fault", set_fault, {1, 1}, ctx.engine().faults(), mo::cuda_faults{none, 3, none});
  CHECK_THROWS_WITH_AS(ctx.synchronize(), "the router gave token 3 fewer experts than it has slots.", mo::data_error);
  CHECK_NOTHROW(ctx.synchronize());
  ctx.engine().launch("set_fault", set_fault, {1, 1}, ctx.engine().faults(), mo::cuda_faults{none, none, 9});
  CHECK_THROWS_WITH_AS(ctx.synchronize(), "an expert was given 9 rows, where blocks between ranks have room for fewer.",
                       mo::data_error);
  CHECK_NOTHROW(ctx.synchronize());
}

TEST_CASE("to settle is to wait for the work, whatever the device has seen") {
  mo::context<on_cuda> ctx;
  float* pinned = nullptr;
  REQUIRE(cudaMallocHost(reinterpret_cast<void**>(&pinned), sizeof(float)) == cudaSuccess);
  *pinned = 0;
  auto x = ctx.matrix(1, 1);
  ctx.engine().launch("add_one", add_one, {1, 32}, x.data(), 1);
  ctx.engine().launch("set_fault", set_fault, {1, 1}, ctx.engine().faults(), mo::cuda_faults{12, none, none});
  REQUIRE(cudaMemcpyAsync(pinned, x.data(), sizeof(float), cudaMemcpyDeviceToHost, ctx.engine().stream()) ==
          cudaSuccess);
  CHECK_NOTHROW(ctx.engine().settle());
  CHECK(*pinned == 1);
  CHECK_THROWS_AS(ctx.synchronize(), mo::data_error);
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
}

TEST_CASE("memory that the device cannot read is refused, with the call and the name") {
  mo::context<on_cuda> ctx;
  auto x = ctx.matrix(1, 8);
  float on_host[8] = {};
  CHECK_NOTHROW(ctx.engine().check_memory("forward", "x", x.data()));
  CHECK_NOTHROW(ctx.engine().check_memory("forward", "x", nullptr));
  CHECK_THROWS_WITH_AS(ctx.engine().check_memory("forward", "x", on_host),
                       "forward was given x in host memory; mo::cuda needs device memory.", mo::cuda_error);
}

TEST_CASE("a launch that cannot be says which kernel, and does no harm") {
  mo::context<on_cuda> ctx;
  auto x = ctx.matrix(1, 8);
  std::string said;
  try {
    ctx.engine().launch("add_one", add_one, {1, 4096}, x.data(), 8);
  } catch (mo::cuda_error const& e) {
    said = e.what();
  }
  CHECK(said.rfind("add_one: ", 0) == 0);
  CHECK_NOTHROW(ctx.synchronize());
}

TEST_CASE("there is no such device") {
  CHECK_THROWS_AS(mo::cuda_engine(mo::cuda{-1}), mo::cuda_error);
  CHECK_THROWS_AS(mo::cuda_engine(mo::cuda{1000}), mo::cuda_error);
}

#if defined(CUDA_ON_CPU)
TEST_CASE("no device, too old a device, a program for another device, no memory, an earlier failure: cuda errors") {
  using cuda_on_cpu::knobs;
  auto const before = knobs;
  auto const said = [] {
    try {
      mo::cuda_engine engine{mo::cuda{}};
      engine.synchronize();
    } catch (mo::cuda_error const& e) {
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  CHECK(said() == "nothing");
  knobs.devices = 0;
  CHECK(said() == "no CUDA device: no CUDA-capable device is detected (cudaErrorNoDevice).");
  knobs = before;
  knobs.compute_major = 7, knobs.compute_minor = 5;
  CHECK(said() == "CUDA device 0 has compute capability 7.5, and mo::cuda needs 8.0 or newer.");
  knobs = before;
  knobs.device_bytes = 1000;
  CHECK(said() ==
        "out of memory: 4194328 bytes of device memory could not be allocated: out of memory "
        "(cudaErrorMemoryAllocation).");
  knobs = before;
  knobs.next_launch = cudaErrorNoKernelImageForDevice;
  CHECK(said() ==
        "the first kernel (is the program compiled for this device?): no kernel image is available for "
        "execution (cudaErrorNoKernelImageForDevice).");
  knobs = before;
  mo::cuda_engine engine{mo::cuda{}};
  mo::device_matrix<float> x(1, 8, engine.memory());
  knobs.sticky = cudaErrorIllegalAddress;
  CHECK_THROWS_WITH_AS(engine.check_memory("forward", "x", x.data()),
                       "forward came after a CUDA call that failed: an illegal memory access was encountered "
                       "(cudaErrorIllegalAddress).",
                       mo::cuda_error);
  knobs = before;
  CHECK(said() == "nothing");
}

TEST_CASE("memory of another device is refused") {
  auto const before = cuda_on_cpu::knobs;
  cuda_on_cpu::knobs.devices = 2;
  {
    mo::cuda_engine engine{mo::cuda{0}}, other{mo::cuda{1}};
    mo::device_matrix<float> x(1, 8, other.memory());
    CHECK_NOTHROW(other.check_memory("forward", "x", x.data()));
    CHECK_THROWS_WITH_AS(engine.check_memory("forward", "x", x.data()),
                         "forward was given x on CUDA device 1, but runs on 0.", mo::cuda_error);
  }
  cuda_on_cpu::knobs = before;  // a device that is gone fails what its engine does at its end
}

TEST_CASE("memory is given back when a context ends, ranges are closed") {
  auto const before = cuda_on_cpu::counters.bytes;
  {
    mo::context<on_cuda> ctx;
    auto x = ctx.matrix(100, 100);
    mo::cuda_engine::range const named("test");
    CHECK(cuda_on_cpu::open_ranges == 1);
  }
  CHECK(cuda_on_cpu::open_ranges == 0);
  CHECK(cuda_on_cpu::counters.bytes == before);
}
#endif
